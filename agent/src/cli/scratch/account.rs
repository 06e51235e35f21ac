//! PostgreSQL refuses root, so that an extract or a drill begun by root goes on as the account of the server it is about.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;

use crate::cli::failure::Failure;
use crate::config::Config;

struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// Replaces this process by the same command as the owner of the data directory, or as user postgres where that is not known.
pub fn go_on_as_server_account(config: &Config, command: &str) -> Result<(), Failure> {
    let advice = format!("run it as the server's account: setpriv --reuid=postgres --regid=postgres --init-groups walkeep {command} …");
    let owner = config.cluster.data_directory.as_ref().and_then(|data| std::fs::metadata(data).ok()).map(|found| found.uid());
    let account = find(&std::fs::read_to_string("/etc/passwd").unwrap_or_default(), owner.filter(|uid| *uid != 0));
    let Some(account) = account else {
        let reason = "PostgreSQL does not run as root, and neither the data directory's owner nor a user postgres is in /etc/passwd";
        return Err(Failure::refused(reason).hint(advice));
    };
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={}", account.uid), &format!("--regid={}", account.gid)]).args(["--init-groups", "--"]).arg(program);
    command.args(std::env::args_os().skip(1)).env("HOME", &account.home).env("USER", &account.name).env("LOGNAME", &account.name);
    // Answers only if it fails.
    let error = command.exec();
    Err(Failure::refused(format!("PostgreSQL does not run as root, and setpriv cannot be run: {error}")).hint(advice))
}

fn find(passwd: &str, uid: Option<u32>) -> Option<Account> {
    let accounts = passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
        Some(Account { name: (*name).to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: (*home).to_owned() })
    });
    let mut accounts = accounts.filter(|account| account.uid != 0);
    match uid {
        Some(uid) => accounts.find(|account| account.uid == uid),
        None => accounts.find(|account| account.name == "postgres"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_or_postgres() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\npostgres:x:104:110:,,,:/var/lib/postgresql:/bin/bash\nme:x:1000:1001::/home/me:/bin/sh\n";
        let found = |uid| find(passwd, uid).map(|account| (account.name, account.gid, account.home));
        assert_eq!(found(None), Some(("postgres".into(), 110, "/var/lib/postgresql".into())));
        assert_eq!(found(Some(1000)), Some(("me".into(), 1001, "/home/me".into())));
        assert_eq!(found(Some(5)), None);
    }
}
