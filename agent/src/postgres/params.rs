//! Connection parameters with libpq's names, defaults and environment variables.
//!
//! Differences from libpq, all towards refusing: service files, GSSAPI, CRLs and `requirepeer` are not offered and their keys are
//! refused by name; a named `sslrootcert` must exist; `connect_timeout` is 10 s unless given (0 still means to wait without end). And one for speed: where
//! only the primary will do, the host that was it last is asked first, so that a host that is gone does not cost every connection its `connect_timeout`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{conninfo, passfile};

/// Where Debian and the other distributions put the server's socket; `/tmp` is PostgreSQL's own default.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The connection parameters make no sense. Never repeats a value that may be secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    /// The text as a whole cannot be read.
    #[error("{0}")]
    Syntax(String),
    /// A key that libpq has not, or that is not supported here.
    #[error("connection parameter {0:?} is not known or not supported")]
    UnknownKey(String),
    /// A value that the key does not allow.
    #[error("connection parameter {key}: {problem}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        problem: String,
    },
}

fn invalid(key: &'static str, problem: impl Into<String>) -> ParamsError {
    ParamsError::Invalid { key, problem: problem.into() }
}

/// One server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A Unix-domain socket in this directory.
    Unix {
        /// The directory.
        directory: PathBuf,
        /// Part of the socket's name.
        port: u16,
    },
    /// TCP.
    Tcp {
        /// `host`: what is resolved, and what a certificate must name.
        name: Option<String>,
        /// `hostaddr`: where to connect to without resolving anything.
        address: Option<IpAddr>,
        /// The port.
        port: u16,
    },
}

impl Host {
    /// As `host:port`. One on this host is called by `own_host`.
    pub fn server_name(&self, own_host: &str) -> String {
        match self {
            Self::Unix { port, .. } => format!("{own_host}:{port}"),
            Self::Tcp { name, address, port } => {
                let named = name.as_ref().map(|name| name.to_lowercase());
                let address = address.or_else(|| named.as_ref().and_then(|name| name.parse().ok()));
                let local = address.is_some_and(|address| address.is_loopback()) || named.as_deref() == Some("localhost");
                let other = named.or_else(|| address.map(|address| address.to_string())).unwrap_or_default();
                format!("{}:{port}", if local { own_host } else { &other })
            }
        }
    }

    pub(super) fn port(&self) -> u16 {
        match self {
            Host::Unix { port, .. } | Host::Tcp { port, .. } => *port,
        }
    }

    /// The names under which the password file may list it.
    fn passfile_names(&self) -> Vec<String> {
        match self {
            Host::Unix { directory, .. } => {
                let path = directory.to_string_lossy().into_owned();
                let usual = path == "/run/postgresql" || SOCKET_DIRECTORIES.contains(&path.as_str());
                if usual { vec!["localhost".into(), path] } else { vec![path] }
            }
            Host::Tcp { name, address, .. } => name.clone().or(address.map(|address| address.to_string())).into_iter().collect(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Unix { directory, port } => write!(f, "{}/.s.PGSQL.{port}", directory.display()),
            Host::Tcp { name: Some(name), address: Some(address), port } => write!(f, "{name} ({address}) port {port}"),
            Host::Tcp { name: Some(name), port, .. } => write!(f, "{name} port {port}"),
            Host::Tcp { address: Some(address), port, .. } => write!(f, "{address} port {port}"),
            Host::Tcp { port, .. } => write!(f, "localhost port {port}"),
        }
    }
}

macro_rules! choices {
    ($(#[$doc:meta])* $name:ident, $key:literal, $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// libpq's word for it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            fn parse(text: &str) -> Result<Self, ParamsError> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(invalid($key, format!("{text:?} is none of {}", [$($text),+].join(", ")))),
                }
            }
        }
    };
}

choices! {
    /// How much TLS is demanded. Over Unix sockets TLS is never used.
    SslMode, "sslmode",
    /// Never TLS.
    Disable = "disable",
    /// TLS if the server refuses to go without.
    Allow = "allow",
    /// TLS if the server has it.
    Prefer = "prefer",
    /// TLS or nothing.
    Require = "require",
    /// And a certificate from a trusted authority.
    VerifyCa = "verify-ca",
    /// And one that names the host.
    VerifyFull = "verify-full",
}

choices! {
    /// Whether SCRAM is tied to the server's certificate.
    ChannelBinding, "channel_binding",
    /// Never.
    Disable = "disable",
    /// If both sides can.
    Prefer = "prefer",
    /// Or no connection.
    Require = "require",
}

choices! {
    /// Which kind of server is wanted.
    TargetSession, "target_session_attrs",
    /// Whichever.
    Any = "any",
    /// One where transactions may write.
    ReadWrite = "read-write",
    /// One where they may not.
    ReadOnly = "read-only",
    /// One that is not in recovery.
    Primary = "primary",
    /// One that is.
    Standby = "standby",
    /// One that is, else any.
    PreferStandby = "prefer-standby",
}

/// Whose certificates are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCertificates {
    /// Those in this file, which was named.
    File(PathBuf),
    /// Those in this file, if it exists.
    DefaultFile(PathBuf),
    /// Those the operating system trusts.
    System,
}

/// TCP keepalive: on, and faster than the system's two hours if asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Keepalives {
    pub off: bool,
    pub idle: Option<Duration>,
    pub interval: Option<Duration>,
    pub count: Option<u32>,
    pub user_timeout: Option<Duration>,
}

/// Which host was the primary when one was last connected to, known to all clones of the parameters; 0 until then. No part of what they are.
#[derive(Debug, Clone, Default)]
struct LastPrimary(Arc<AtomicUsize>);

impl PartialEq for LastPrimary {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for LastPrimary {}

#[derive(Clone, PartialEq, Eq)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// Everything needed to reach one PostgreSQL cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionParams {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    password: Option<Secret>,
    passfile: Option<PathBuf>,
    pub(super) dbname: Option<String>,
    pub(super) sslmode: SslMode,
    pub(super) roots: RootCertificates,
    pub(super) client_certificate: Option<(PathBuf, PathBuf)>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) application_name: Option<String>,
    pub(super) options: Option<String>,
    pub(super) channel_binding: ChannelBinding,
    pub(super) target_session: TargetSession,
    pub(super) keepalives: Keepalives,
    last_primary: LastPrimary,
}

/// Keys, and the environment variables that stand in for them.
const KEYS: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("dbname", "PGDATABASE"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("application_name", "PGAPPNAME"),
    ("fallback_application_name", ""),
    ("options", "PGOPTIONS"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_count", ""),
    ("tcp_user_timeout", ""),
    ("gssencmode", "PGGSSENCMODE"),
    ("client_encoding", ""),
];

impl ConnectionParams {
    /// The servers as `host:port`, in the order in which they are tried. One on this host is called by `own_host`, which tells it from others' own.
    pub fn server_names(&self, own_host: &str) -> Vec<String> {
        self.hosts.iter().map(|host| host.server_name(own_host)).collect()
    }

    /// Whether there is one host to connect to, and no other to try.
    pub fn names_one_server(&self) -> bool {
        self.hosts.len() == 1
    }

    /// For one of these servers alone, whatever it is at this moment; `None` if it is none of them.
    pub fn only(&self, server: &str, own_host: &str) -> Option<Self> {
        let host = self.hosts.iter().find(|host| host.server_name(own_host) == server)?;
        Some(Self { hosts: vec![host.clone()], target_session: TargetSession::Any, last_primary: LastPrimary::default(), ..self.clone() })
    }

    /// Reads a keyword/value string or a `postgresql://` URL; what it leaves open comes from `env` and then from libpq's defaults.
    pub fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ParamsError> {
        let mut given = BTreeMap::new();
        for (key, value) in conninfo::split(text)? {
            let Some((known, _)) = KEYS.iter().find(|(known, _)| *known == key) else {
                return Err(ParamsError::UnknownKey(key));
            };
            given.insert(*known, value);
        }
        if env("PGSERVICE").is_some_and(|value| !value.is_empty()) {
            return Err(ParamsError::Syntax("PGSERVICE is set, but service files are not supported: unset it".into()));
        }
        for (key, variable) in KEYS.iter().filter(|(_, variable)| !variable.is_empty()) {
            if let Some(value) = (!given.contains_key(key)).then(|| env(variable)).flatten() {
                given.insert(*key, value);
            }
        }
        given.retain(|_, value| !value.is_empty());
        Self::from_values(given, env)
    }

    fn from_values(mut given: BTreeMap<&'static str, String>, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ParamsError> {
        let account = Account::current();
        let home = env("HOME").filter(|home| !home.is_empty()).map(PathBuf::from).or(account.home);
        let in_home = |name: &str| home.as_ref().map(|home| home.join(name));
        let hosts = hosts(given.get("host"), given.get("hostaddr"), given.get("port"))?;
        let user = given.remove("user").or(account.name).or_else(|| env("USER"));
        let roots = match given.remove("sslrootcert").as_deref() {
            Some("system") => RootCertificates::System,
            Some(path) => RootCertificates::File(path.into()),
            None => RootCertificates::DefaultFile(in_home(".postgresql/root.crt").unwrap_or_default()),
        };
        let sslmode = match (given.remove("sslmode"), &roots) {
            (None, RootCertificates::System) => SslMode::VerifyFull,
            (None, _) => SslMode::Prefer,
            (Some(text), RootCertificates::System) if SslMode::parse(&text)? < SslMode::VerifyFull => {
                return Err(invalid("sslmode", format!("{text} is too weak for sslrootcert=system: use verify-full")));
            }
            (Some(text), _) => SslMode::parse(&text)?,
        };
        if given.get("gssencmode").is_some_and(|mode| mode == "require") {
            return Err(invalid("gssencmode", "GSSAPI encryption is not supported"));
        }
        let certificate = given.remove("sslcert").map(PathBuf::from);
        let key = given.remove("sslkey").map(PathBuf::from).or_else(|| in_home(".postgresql/postgresql.key"));
        let named = certificate.is_some();
        let certificate = certificate.or_else(|| in_home(".postgresql/postgresql.crt")).filter(|path| named || path.exists());
        let seconds = |key| number(&given, key).map(|value| value.map(Duration::from_secs));
        let keepalives = Keepalives {
            off: number(&given, "keepalives")? == Some(0),
            idle: seconds("keepalives_idle")?.filter(|time| !time.is_zero()),
            interval: seconds("keepalives_interval")?.filter(|time| !time.is_zero()),
            count: number(&given, "keepalives_count")?.and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0),
            user_timeout: number(&given, "tcp_user_timeout")?.map(Duration::from_millis).filter(|time| !time.is_zero()),
        };
        let connect_timeout = match given.get("connect_timeout").map(String::as_str) {
            None => Some(DEFAULT_CONNECT_TIMEOUT),
            Some(text) if text.starts_with('-') && text[1..].parse::<u32>().is_ok() => None,
            Some(_) => seconds("connect_timeout")?.filter(|time| !time.is_zero()),
        };
        Ok(Self {
            hosts,
            user: user.ok_or_else(|| invalid("user", "not given, and the operating system's user has no name"))?,
            password: given.remove("password").map(Secret),
            passfile: given.remove("passfile").map(PathBuf::from).or_else(|| in_home(".pgpass")),
            dbname: given.remove("dbname"),
            sslmode,
            roots,
            client_certificate: certificate.zip(key),
            connect_timeout,
            application_name: given.remove("application_name").or_else(|| given.remove("fallback_application_name")),
            options: given.remove("options"),
            channel_binding: given.remove("channel_binding").map_or(Ok(ChannelBinding::Prefer), |text| ChannelBinding::parse(&text))?,
            target_session: given.remove("target_session_attrs").map_or(Ok(TargetSession::Any), |text| TargetSession::parse(&text))?,
            keepalives,
            last_primary: LastPrimary::default(),
        })
    }

    /// The hosts in the order in which to try them now.
    pub(super) fn in_order(&self) -> Vec<Host> {
        let mut hosts = self.hosts.clone();
        let last = self.last_primary.0.load(Ordering::Relaxed);
        if let Some(first) = hosts.get_mut(..last) {
            first.rotate_right(usize::from(last > 0));
        }
        hosts
    }

    /// Notes that this host was let in, as what was wanted.
    pub(super) fn connected(&self, host: &Host) {
        if matches!(self.target_session, TargetSession::Primary | TargetSession::ReadWrite) {
            let number = self.hosts.iter().position(|known| known == host).map_or(0, |index| index + 1);
            self.last_primary.0.store(number, Ordering::Relaxed);
        }
    }

    /// The servers, in the order they are tried.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The role.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database for ordinary SQL; named as the role unless given.
    pub fn dbname(&self) -> &str {
        self.dbname.as_deref().unwrap_or("postgres")
    }

    /// The same for another database of the cluster.
    pub fn for_database(&self, database: &str) -> Self {
        Self { dbname: Some(database.to_owned()), ..self.clone() }
    }

    /// How much TLS is demanded.
    pub fn sslmode(&self) -> SslMode {
        self.sslmode
    }

    /// The name given for this connection, if any.
    pub fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    /// The password, from the parameters or from the password file, read afresh each time.
    pub(super) fn password(&self, host: &Host, database: &str) -> Option<String> {
        if let Some(Secret(password)) = &self.password {
            return Some(password.clone());
        }
        let names = host.passfile_names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        passfile::lookup(self.passfile.as_deref()?, &names, host.port(), database, &self.user)
    }
}

impl fmt::Display for ConnectionParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        write!(f, "user {} at {} (sslmode {})", self.user, hosts.join(", "), self.sslmode.as_str())
    }
}

fn number(given: &BTreeMap<&'static str, String>, key: &'static str) -> Result<Option<u64>, ParamsError> {
    given.get(key).map(|text| text.trim().parse().map_err(|_| invalid(key, format!("{text:?} is not a number")))).transpose()
}

fn hosts(names: Option<&String>, addresses: Option<&String>, ports: Option<&String>) -> Result<Vec<Host>, ParamsError> {
    let (names, addresses, ports) = (list(names), list(addresses), list(ports));
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(invalid("hostaddr", format!("{} addresses for {} hosts", addresses.len(), names.len())));
    }
    let count = names.len().max(addresses.len()).max(1);
    if ports.len() > 1 && ports.len() != count {
        return Err(invalid("port", format!("{} ports for {count} hosts", ports.len())));
    }
    (0..count)
        .map(|index| {
            let text = if ports.len() == 1 { ports.first() } else { ports.get(index) };
            let port = match text.copied().filter(|text| !text.is_empty()) {
                Some(text) => text.parse().ok().filter(|port| *port > 0).ok_or_else(|| invalid("port", format!("{text:?} is no port")))?,
                None => 5432,
            };
            let address = addresses.get(index).filter(|text| !text.is_empty());
            let address =
                address.map(|text| text.parse().map_err(|_| invalid("hostaddr", format!("{text:?} is no IP address")))).transpose()?;
            let name = names.get(index).filter(|text| !text.is_empty()).map(|name| (*name).to_owned());
            Ok(match (name, address) {
                (None, None) => Host::Unix { directory: default_socket_directory(), port },
                (Some(name), None) if name.starts_with('/') => Host::Unix { directory: name.into(), port },
                (Some(name), None) if name.starts_with('@') => {
                    return Err(invalid("host", "sockets in the abstract namespace are not supported"));
                }
                (name, address) => Host::Tcp { name, address, port },
            })
        })
        .collect()
}

fn list(text: Option<&String>) -> Vec<&str> {
    text.map(|text| text.split(',').map(str::trim).collect()).unwrap_or_default()
}

fn default_socket_directory() -> PathBuf {
    let found = SOCKET_DIRECTORIES.iter().find(|directory| Path::new(directory).is_dir());
    PathBuf::from(found.unwrap_or(&SOCKET_DIRECTORIES[0]))
}

/// The operating system's user as /etc/passwd knows it.
struct Account {
    name: Option<String>,
    home: Option<PathBuf>,
}

impl Account {
    fn current() -> Self {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let line = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields.get(2) == Some(&uid.as_str()));
        let field = |index: usize| line.as_ref().and_then(|fields| fields.get(index)).filter(|text| !text.is_empty());
        Self { name: field(0).map(|name| (*name).to_owned()), home: field(5).map(PathBuf::from) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_primary_is_asked_first_where_only_the_primary_will_do() {
        for (attrs, after) in [("read-write", "c a b d"), ("primary", "c a b d"), ("any", "a b c d"), ("standby", "a b c d")] {
            let params = ConnectionParams::parse(&format!("host=a,b,c,d user=u target_session_attrs={attrs}"), &|_| None).unwrap();
            let order = |params: &ConnectionParams| {
                let names = params.in_order().into_iter().map(|host| host.to_string()[..1].to_owned());
                names.collect::<Vec<_>>().join(" ")
            };
            assert_eq!(order(&params), "a b c d");
            params.clone().connected(&params.hosts[2]);
            assert_eq!(order(&params), after, "{attrs}");
            params.connected(&params.hosts[0]);
            assert_eq!(order(&params), "a b c d");
        }
    }

    fn parse(text: &str) -> Result<ConnectionParams, ParamsError> {
        ConnectionParams::parse(text, &|_| None)
    }

    fn tcp(name: &str, port: u16) -> Host {
        Host::Tcp { name: Some(name.into()), address: None, port }
    }

    #[test]
    fn hosts_and_ports_go_together() {
        let hosts = |text: &str| parse(text).map(|params| params.hosts);
        assert_eq!(hosts("host=a,b port=1,2"), Ok(vec![tcp("a", 1), tcp("b", 2)]));
        assert_eq!(hosts("host=a,b port=7"), Ok(vec![tcp("a", 7), tcp("b", 7)]));
        assert_eq!(hosts("host=a,/run/x port=,7"), Ok(vec![tcp("a", 5432), Host::Unix { directory: "/run/x".into(), port: 7 }]));
        assert_eq!(hosts("postgresql://a:1,[::1]"), Ok(vec![tcp("a", 1), tcp("::1", 5432)]));
        assert_eq!(
            hosts("host=name hostaddr=127.0.0.1"),
            Ok(vec![Host::Tcp { name: Some("name".into()), address: Some("127.0.0.1".parse().expect("an address")), port: 5432 }])
        );
        assert!(matches!(hosts(""), Ok(hosts) if matches!(hosts.as_slice(), [Host::Unix { .. }])));
        for bad in ["host=a,b port=1,2,3", "host=a,b hostaddr=1.1.1.1", "port=0", "port=65536", "port=x", "hostaddr=name", "host=@x"] {
            assert!(hosts(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn environment_fills_what_is_open() {
        let env = |name: &str| match name {
            "PGHOST" => Some("envhost".to_owned()),
            "PGPORT" => Some("6000".to_owned()),
            "PGUSER" => Some("envuser".to_owned()),
            "PGSSLMODE" => Some("require".to_owned()),
            "PGPASSWORD" => Some("envsecret".to_owned()),
            "PGDATABASE" => Some("envdb".to_owned()),
            _ => None,
        };
        let params = ConnectionParams::parse("user=me dbname=''", &env).expect("parses");
        assert_eq!(params.hosts, [tcp("envhost", 6000)]);
        assert_eq!((params.user(), params.dbname(), params.sslmode()), ("me", "postgres", SslMode::Require));
        assert_eq!(params.password(&params.hosts[0], "x").as_deref(), Some("envsecret"));
        assert!(ConnectionParams::parse("", &|name| (name == "PGSERVICE").then(|| "x".into())).is_err());
    }

    #[test]
    fn the_password_is_never_shown() {
        let params = parse("host=h user=u password=geheim").expect("parses");
        assert!(!format!("{params:?} {params:#?} {params}").contains("geheim"));
        for bad in ["password=geheim nonsense", "password=geheim port=x", "postgresql://u:geheim@h:x/%zz", "password='geheim"] {
            let error = parse(bad).expect_err(bad);
            assert!(!format!("{error} {error:?}").contains("geheim"), "{error}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        assert_eq!(parse("host=h sslcrl=x"), Err(ParamsError::UnknownKey("sslcrl".into())));
        assert!(parse("postgresql://h/?replication=true").is_err());
        for bad in ["sslmode=yes", "channel_binding=on", "gssencmode=require", "connect_timeout=soon", "target_session_attrs=x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn modes_and_times() {
        assert_eq!(parse("sslrootcert=system").map(|params| params.sslmode), Ok(SslMode::VerifyFull));
        assert!(parse("sslrootcert=system sslmode=require").is_err());
        assert_eq!(parse("").map(|params| params.connect_timeout), Ok(Some(DEFAULT_CONNECT_TIMEOUT)));
        assert_eq!(parse("connect_timeout=0").map(|params| params.connect_timeout), Ok(None));
        assert_eq!(parse("connect_timeout=-1").map(|params| params.connect_timeout), Ok(None));
        assert_eq!(parse("connect_timeout=3").map(|params| params.connect_timeout), Ok(Some(Duration::from_secs(3))));
    }
}
