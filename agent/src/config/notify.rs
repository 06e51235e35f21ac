//! `[notify]`: who is told what is wrong, where nobody looks at metrics.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use walkeep_core::alarm::Rules;

use super::raw::OneOrMore;
use super::raw::notify::{RawEmail, RawNotify};
use super::schedules::time;
use super::secret_file::{self, SecretSource};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Who is told, and when.
#[derive(Debug, Clone)]
pub struct NotifyConfig {
    /// A URL that takes `{"text": ...}`.
    pub webhook: Option<SecretSource>,
    /// Mail.
    pub email: Option<EmailConfig>,
    /// A program and its arguments.
    pub command: Option<Vec<String>>,
    /// When.
    pub rules: Rules,
    /// So much may be lost before it is an alarm.
    pub possible_loss: Duration,
    /// A URL that is asked for now and then as long as WAL flows.
    pub heartbeat: Option<SecretSource>,
    /// How often.
    pub heartbeat_interval: Duration,
}

impl NotifyConfig {
    /// Nobody is told, but it is still judged what is wrong.
    fn nobody() -> Self {
        Self {
            webhook: None,
            email: None,
            command: None,
            rules: Rules { wait: None, remind: Some(DAY), most_an_hour: 12 },
            possible_loss: MINUTE,
            heartbeat: None,
            heartbeat_interval: MINUTE,
        }
    }
}

/// Mail by an SMTP server.
#[derive(Debug, Clone)]
pub struct EmailConfig {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is kept private.
    pub tls: MailTls,
    /// The account, and its password.
    pub login: Option<(String, SecretSource)>,
    /// Who it comes from.
    pub from: String,
    /// Who it goes to.
    pub to: Vec<String>,
}

/// How a connection to an SMTP server is kept private.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailTls {
    /// Not at all: a server on this host.
    None,
    /// From STARTTLS on, which must succeed.
    StartTls,
    /// From the beginning.
    Always,
}

/// Checks what was written.
pub fn check(raw: RawNotify, env: &dyn Fn(&str) -> Option<String>) -> Result<NotifyConfig> {
    let usual = NotifyConfig::nobody();
    let RawNotify {
        webhook,
        webhook_file,
        command,
        heartbeat,
        heartbeat_file,
        heartbeat_interval,
        wait,
        remind,
        most_an_hour,
        possible_loss,
        email,
    } = raw;
    let every = |key: &str, text: Option<String>, usual: Duration, least: Duration| -> Result<Duration> {
        let value = text.map_or(Ok(usual), |text| time(&text)).with_context(|| key.to_owned())?;
        ensure!(value >= least, "{key}: must be at least {}", humantime::format_duration(least));
        Ok(value)
    };
    let remind = match remind.as_deref() {
        Some("off") => None,
        _ => Some(every("remind", remind, DAY, MINUTE)?),
    };
    let most_an_hour = most_an_hour.unwrap_or(usual.rules.most_an_hour);
    ensure!((1..=3600).contains(&most_an_hour), "most_an_hour: must be from 1 to 3600");
    let rules = Rules { wait: wait.map(|text| every("wait", Some(text), MINUTE, Duration::ZERO)).transpose()?, remind, most_an_hour };
    let config = NotifyConfig {
        webhook: secret_file::check("webhook", webhook, webhook_file, "webhook", env)?,
        email: email.map(|email| check_email(email, env)).transpose().context("[notify.email]")?,
        command: command.map(check_command).transpose()?,
        rules,
        possible_loss: every("possible_loss", possible_loss, usual.possible_loss, Duration::from_secs(1))?,
        heartbeat: secret_file::check("heartbeat", heartbeat, heartbeat_file, "heartbeat", env)?,
        heartbeat_interval: every("heartbeat_interval", heartbeat_interval, MINUTE, Duration::from_secs(1))?,
    };
    for (key, source) in [("webhook", &config.webhook), ("heartbeat", &config.heartbeat)] {
        if let Some(SecretSource::Given(url)) = source {
            check_url(url.reveal()).with_context(|| key.to_owned())?;
        }
    }
    Ok(config)
}

/// Whether it can be asked for. It is not shown: what lies behind the host's name is often a secret.
pub fn check_url(url: &str) -> Result<axum::http::Uri> {
    let wrong = "not a URL: write https://host/path (not shown)";
    let uri: axum::http::Uri = url.parse().ok().context(wrong)?;
    ensure!(matches!(uri.scheme_str(), Some("https" | "http")) && uri.host().is_some_and(|host| !host.is_empty()), wrong);
    Ok(uri)
}

fn check_command(command: OneOrMore) -> Result<Vec<String>> {
    let argv = match command {
        OneOrMore::One(text) => ["/bin/sh", "-c", &text].map(str::to_owned).to_vec(),
        OneOrMore::More(argv) => argv,
    };
    ensure!(argv.first().is_some_and(|program| !program.is_empty()), "command: it has no program");
    ensure!(argv.iter().all(|word| !word.contains('\0')), "command: a word of it has a zero byte");
    Ok(argv)
}

fn check_email(raw: RawEmail, env: &dyn Fn(&str) -> Option<String>) -> Result<EmailConfig> {
    let RawEmail { server, user, password, password_file, from, to } = raw;
    let server = server.context("server is missing: write smtps://host, smtp://host:587 (with STARTTLS), or smtp://localhost")?;
    let wrong =
        || format!("server: {server:?} is not a mail server: write smtps://host, smtp://host:587 (with STARTTLS), or smtp://localhost");
    ensure!(!server.contains('@'), "server: there is an @ in it; the account belongs into user, its password into password_file");
    let uri: axum::http::Uri = server.parse().ok().with_context(wrong)?;
    let host = uri.host().filter(|host| !host.is_empty()).with_context(wrong)?.to_owned();
    ensure!(matches!(uri.path(), "" | "/") && uri.query().is_none(), wrong());
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_here = bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    let (tls, usual_port) = match uri.scheme_str() {
        Some("smtps") => (MailTls::Always, 465),
        Some("smtp") if is_here => (MailTls::None, 25),
        Some("smtp") => (MailTls::StartTls, 587),
        _ => bail!(wrong()),
    };
    let password = secret_file::check("password", password, password_file, "smtp-password", env)?;
    let login = match (user, password) {
        (Some(user), Some(password)) => Some((user, password)),
        (Some(_), None) => bail!("user: goes with password_file, WALKEEP_NOTIFY_EMAIL_PASSWORD or the credential walkeep-smtp-password"),
        (None, Some(SecretSource::File(path))) if path.file_name().is_some_and(|name| name == "walkeep-smtp-password") => None,
        (None, Some(_)) => bail!("the password goes with user"),
        (None, None) => None,
    };
    let to: Vec<String> = to.iter().flat_map(OneOrMore::texts).map(str::to_owned).collect();
    ensure!(!to.is_empty(), "to is missing: write to = [\"dba@example.org\"]");
    let from = from.context("from is missing: write from = \"walkeep@example.org\"")?;
    for address in to.iter().chain([&from]) {
        address.parse::<lettre::Address>().map_err(|error| anyhow::anyhow!("{address:?} is not an address: {error}"))?;
    }
    Ok(EmailConfig { host: bare.to_owned(), port: uri.port_u16().unwrap_or(usual_port), tls, login, from, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NotifyConfig> {
        check(toml::from_str(text)?, &|_| None)
    }

    #[test]
    fn what_is_written_is_understood() {
        let config =
            read("webhook = \"https://hooks.example.org/secret-1\"\nwait = \"5s\"\nremind = \"off\"\ncommand = \"logger x\"").unwrap();
        assert_eq!(config.rules, Rules { wait: Some(Duration::from_secs(5)), remind: None, most_an_hour: 12 });
        assert_eq!(config.command.as_deref(), Some(&["/bin/sh".to_owned(), "-c".into(), "logger x".into()][..]));
        assert!(!format!("{config:?}").contains("secret-1"));
        for (server, tls, port) in [
            ("smtps://mail.example.org", MailTls::Always, 465),
            ("smtp://mail.example.org", MailTls::StartTls, 587),
            ("smtp://mail.example.org:25", MailTls::StartTls, 25),
            ("smtp://localhost", MailTls::None, 25),
            ("smtp://127.0.0.1:2525", MailTls::None, 2525),
        ] {
            let email = read(&format!("[email]\nserver = \"{server}\"\nfrom = \"a@b.c\"\nto = \"d@e.f, g@h.i\"")).unwrap().email.unwrap();
            assert_eq!((email.tls, email.port, email.to.len()), (tls, port, 2), "{server}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_and_secrets_are_not_shown() {
        for (text, reason) in [
            ("webhook = \"hooks.example.org/secret-1\"", "not a URL"),
            ("webhook = \"ftp://secret-1\"", "not a URL"),
            ("webhook = \"https://a/secret-1\"\nwebhook_file = \"/x\"", "one of them"),
            ("webhook_file = \"https://a/secret-1\"", "not an absolute path"),
            ("most_an_hour = 0", "from 1 to 3600"),
            ("remind = \"1s\"", "remind: must be at least 1m"),
            ("command = []", "no program"),
            ("[email]\nserver = \"mail\"\nfrom = \"a@b\"\nto = \"c@d\"", "not a mail server"),
            ("[email]\nserver = \"smtp://user:secret-1@mail\"\nfrom = \"a@b\"\nto = \"c@d\"", "there is an @"),
            ("[email]\nserver = \"smtp://mail\"\nfrom = \"a\"\nto = \"c@d\"", "not an address"),
            ("[email]\nserver = \"smtp://mail\"\nfrom = \"a@b\"", "to is missing"),
            ("[email]\nserver = \"smtp://mail\"\nuser = \"u\"\nfrom = \"a@b\"\nto = \"c@d\"", "password_file"),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(reason) && !error.contains("secret-1"), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_is_read_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("walkeep-webhook");
        let config = check(RawNotify::default(), &|name| (name == "CREDENTIALS_DIRECTORY").then(|| folder.path().display().to_string()));
        assert!(config.unwrap().webhook.is_none(), "there is no such credential");
        std::fs::write(&file, "https://one\n").unwrap();
        let config = check(RawNotify::default(), &|name| (name == "CREDENTIALS_DIRECTORY").then(|| folder.path().display().to_string()));
        let webhook = config.unwrap().webhook.unwrap();
        assert_eq!(webhook.read().unwrap().reveal(), "https://one");
        std::fs::write(&file, "https://two\n").unwrap();
        assert_eq!(webhook.read().unwrap().reveal(), "https://two");
        std::fs::write(&file, "\n").unwrap();
        assert!(webhook.read().unwrap_err().to_string().contains("is empty"));
    }
}
