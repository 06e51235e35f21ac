//! Who this process is: the system's user, the person behind it, and from where that one came.

use walkeep_core::audit::{Actor, recorded};

use crate::writer;

/// The kernel's word for "nobody logged in", as for services.
const NOBODY: u32 = u32::MAX;

/// What the system and the environment tell of this process.
pub fn this_process() -> Actor {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let login = std::fs::read_to_string("/proc/self/loginuid").ok().and_then(|text| text.trim().parse().ok());
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty()).map(|value| recorded(&value));
    let uid = rustix::process::geteuid().as_raw();
    Actor {
        uid,
        user: name_of(&passwd, uid),
        login: login.filter(|uid| *uid != NOBODY).map(|uid| name_of(&passwd, uid).unwrap_or_else(|| format!("uid {uid}"))),
        sudo_user: variable("SUDO_USER"),
        ssh_from: variable("SSH_CONNECTION").and_then(|text| text.split(' ').next().map(str::to_owned)),
        host: writer::host(),
        pid: std::process::id(),
    }
}

fn name_of(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.into_iter().find(|fields| fields.get(2) == Some(&uid.as_str())).map(|fields| fields[0].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_the_names_of_the_password_file() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\npostgres:x:104:110:,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(name_of(passwd, 104).as_deref(), Some("postgres"));
        assert_eq!(name_of(passwd, 10), None);
        let actor = this_process();
        assert_eq!((actor.uid, actor.pid), (rustix::process::geteuid().as_raw(), std::process::id()));
    }
}
