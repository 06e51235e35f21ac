//! `walkeep agent`, and the fetch service that walkeep-restore-cmd starts where no agent runs.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use futures::FutureExt;

use super::failure::Failure;
use super::{Global, setup};
use crate::config::Config;
use crate::daemon::{self, Role, Served};
use crate::repository::later::OpenRepository;

/// Arguments of `walkeep agent`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep agent
  walkeep agent --config /etc/walkeep/walkeep.toml --cluster main
  walkeep agent                              every [cluster.NAME] of a file that has several, in one process

SIGTERM stores what was received and ends within 5 s; a second one ends at once. With NOTIFY_SOCKET in the
environment (systemd, Type=notify) readiness is told there; /readyz tells it over HTTP.

Base backups by the clock: [[cluster.NAME.backup]] in the configuration, with schedule = \"0 3 * * *\" and
timezone = \"Europe/Berlin\". `walkeep status` shows the next one and what is overdue.")]
pub struct AgentArgs {}

/// Arguments of `walkeep fetch-service`.
#[derive(Debug, Args)]
pub struct FetchServiceArgs {
    /// The socket to serve [default: the cluster's socket, with .fetch behind it]
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Leave after this long without a request
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    idle: Duration,
}

/// Runs the agent until it is told to stop.
pub async fn run(global: &Global, _args: AgentArgs) -> Result<(), Failure> {
    let configs = setup::configs(global)?;
    configs.iter().try_for_each(|config| setup::refuse_past(&config.cluster))?;
    if let Some(config) = configs.first() {
        crate::logging::start(&config.log).map_err(Failure::usage)?;
    }
    let with_socket = |config: Config| (config.cluster.socket.clone(), config);
    serve(configs.into_iter().map(with_socket).collect(), Role::Agent).await
}

/// Runs the fetch service until it has nothing to do.
pub async fn fetch_service(global: &Global, args: FetchServiceArgs) -> Result<(), Failure> {
    let config = setup::config(global)?;
    crate::logging::start(&config.log).map_err(Failure::usage)?;
    let socket = args.socket.unwrap_or_else(|| {
        let mut socket = config.cluster.socket.clone().into_os_string();
        socket.push(".fetch");
        socket.into()
    });
    serve(vec![(socket, config)], Role::FetchService { idle: args.idle }).await
}

async fn serve(configs: Vec<(PathBuf, Config)>, role: Role) -> Result<(), Failure> {
    let stop = setup::stop_on_signals()?;
    let served = configs.into_iter().map(served).collect::<Result<_, _>>()?;
    Ok(daemon::run(served, role, setup::bucket_opener(), stop).await?)
}

fn served((socket, config): (PathBuf, Config)) -> Result<Served, Failure> {
    let params = setup::connection(&config.cluster)?;
    setup::check_repository(&config.cluster)?;
    let (cluster, cut) = (config.cluster.clone(), tokio_util::sync::CancellationToken::new());
    let beside = super::fleet::beside(&config.cluster, &cut);
    let open: OpenRepository = std::sync::Arc::new(move || {
        let (cluster, cut) = (cluster.clone(), cut.clone());
        async move { Ok(setup::agent_repository(&cluster, &cut).await?) }.boxed()
    });
    Ok(Served { config, socket, params, open, beside })
}
