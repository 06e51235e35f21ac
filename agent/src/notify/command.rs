//! Telling by a program: what it is about comes in its environment.

use anyhow::Result;
use walkeep_core::alarm::Message;
use walkeep_core::identifier::printable;

use super::From;
use crate::artifact::command::Call;

/// Longer values a kernel does not take.
const LONGEST: usize = 100_000;

/// Runs it to its end. It has the environment that commands of artifacts have.
pub async fn run(argv: &[String], message: &Message, from: &From) -> Result<()> {
    let json = serde_json::to_string(message)?;
    let json = if json.len() > LONGEST { String::new() } else { json };
    let severity = message.severity().map(|severity| severity.to_string()).unwrap_or_default();
    // The lines of a text are ours; each was made printable.
    let text = message.text(&from.cluster, &from.host).lines().map(printable).collect::<Vec<_>>().join("\n");
    let open = [
        ("WALKEEP_EVENT", message.event.as_str().to_owned()),
        ("WALKEEP_SEVERITY", severity),
        ("WALKEEP_NAME", from.cluster.clone()),
        ("WALKEEP_HOST", from.host.clone()),
        ("WALKEEP_SUBJECT", printable(&message.headline(&from.cluster))),
        ("WALKEEP_TEXT", text),
        ("WALKEEP_JSON", json),
    ];
    let open = open.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let call = Call { argv: argv.to_vec(), environment: Vec::new(), open };
    call.run().await.map(drop)
}
