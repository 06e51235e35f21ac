//! Telling by mail.

use anyhow::{Context, Result};
use lettre::message::header::ContentType;
use lettre::message::{Mailbox, Message as Mail};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use walkeep_core::alarm::Message;

use super::{DEADLINE, From};
use crate::config::{EmailConfig, MailTls};

/// Hands it to the server.
pub async fn send(config: &EmailConfig, message: &Message, from: &From) -> Result<()> {
    let mail = mail(config, message, from)?;
    let builder = match config.tls {
        MailTls::Always => AsyncSmtpTransport::<Tokio1Executor>::relay(&config.host),
        MailTls::StartTls => AsyncSmtpTransport::<Tokio1Executor>::starttls_relay(&config.host),
        MailTls::None => Ok(AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&config.host)),
    };
    let builder = builder.context("prepare TLS for the mail server")?;
    let mut builder = builder.port(config.port).timeout(Some(DEADLINE)).hello_name(ClientId::Domain(hello(&from.host)));
    if let Some((user, password)) = &config.login {
        builder = builder.credentials(Credentials::new(user.clone(), password.read()?.reveal().to_owned()));
    }
    let sent = builder.build().send(mail).await;
    sent.with_context(|| format!("give a mail to {}:{}", config.host, config.port)).map(drop)
}

fn mail(config: &EmailConfig, message: &Message, from: &From) -> Result<Mail> {
    let mailbox = |address: &String| -> Result<Mailbox> { Ok(Mailbox::new(None, address.parse()?)) };
    let sender = Mailbox::new(Some("Walkeep".to_owned()), config.from.parse()?);
    let id = format!("<{}.{}@{}>", message.at.timestamp_micros(), std::process::id(), hello(&from.host));
    let mut builder =
        Mail::builder().from(sender).subject(message.headline(&from.cluster)).message_id(Some(id)).header(ContentType::TEXT_PLAIN);
    for to in &config.to {
        builder = builder.to(mailbox(to)?);
    }
    builder.body(message.text(&from.cluster, &from.host)).context("write a mail")
}

/// A host's name as SMTP takes it.
fn hello(host: &str) -> String {
    let plain: String = host.chars().filter(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-')).collect();
    if plain.is_empty() { "localhost".to_owned() } else { plain }
}
