//! `[listen]`: where the agent is asked, and who sees the status page.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};

use super::raw::RawListen;
use super::secret_file::{self, SecretSource};

/// Where and to whom.
#[derive(Debug, Clone, Default)]
pub struct ListenConfig {
    /// Where metrics, health and the page are served; nowhere unless configured.
    pub http: Option<SocketAddr>,
    /// Whether the page is.
    pub page: bool,
    /// What whoever wants to see it has to know.
    pub token: Option<SecretSource>,
}

/// Checks what was written.
pub fn check(raw: RawListen, env: &dyn Fn(&str) -> Option<String>) -> Result<ListenConfig> {
    let RawListen { http, page, token, token_file } = raw;
    let parse = |text: String| text.parse::<SocketAddr>().with_context(|| format!("{text:?} is not an address: write 127.0.0.1:9187"));
    let http = http.map(parse).transpose().context("http")?;
    let token = secret_file::check("token", token.map(|token| token.0), token_file, "listen-token", env)?;
    if let Some(address) = http.filter(|address| page == Some(true) && token.is_none() && !address.ip().is_loopback()) {
        bail!("page: {address} is reached from other hosts, and whoever asks would see it: set token_file, or listen on 127.0.0.1");
    }
    Ok(ListenConfig { http, page: page.unwrap_or(true), token })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ListenConfig> {
        check(toml::from_str(text)?, &|_| None)
    }

    #[test]
    fn other_hosts_need_a_token() {
        let elsewhere = "http = \"0.0.0.0:9187\"\n";
        assert!(read(&format!("{elsewhere}page = true")).unwrap_err().to_string().contains("set token_file"));
        assert!(read(&format!("{elsewhere}page = true\ntoken_file = \"/etc/walkeep/token\"")).unwrap().page);
        assert!(read(elsewhere).unwrap().token.is_none(), "metrics are served there; the page says why it is not");
        assert!(read("http = \"[::1]:9187\"\npage = true").is_ok());
        assert!(!read("page = false").unwrap().page);
        assert!(format!("{:#}", read("http = \"9187\"").unwrap_err()).contains("127.0.0.1:9187"));
        assert!(!format!("{:?}", read("token = \"sentinel-0123456789\"").unwrap()).contains("sentinel"));
    }
}
