//! The text of a scrape: what the agents of all clusters of a process count, each with its cluster's name, and what the process takes.

use std::collections::BTreeMap;

use prometheus::proto::{LabelPair, MetricFamily};
use prometheus::{Encoder, TextEncoder};
use walkeep_core::layout::ClusterName;

use super::{Metrics, process};
use crate::progress::Progress;

/// The label that every sample of a cluster has.
const CLUSTER: &str = "cluster";

/// Samples of one name stand together, as the format wants it, whatever cluster they are of.
pub fn render<'a>(clusters: impl Iterator<Item = (&'a ClusterName, &'a Metrics, &'a Progress)>) -> prometheus::Result<String> {
    let mut families: BTreeMap<String, MetricFamily> = BTreeMap::new();
    for (cluster, metrics, progress) in clusters {
        metrics.refresh(progress);
        for mut family in metrics.registry.gather() {
            family.mut_metric().iter_mut().for_each(|metric| {
                let mut labels = metric.take_label();
                labels.insert(0, label(cluster));
                metric.set_label(labels);
            });
            match families.get_mut(family.name()) {
                Some(known) => known.mut_metric().extend(family.take_metric()),
                None => drop(families.insert(family.name().to_owned(), family)),
            }
        }
    }
    families.extend(process::families()?.into_iter().map(|family| (family.name().to_owned(), family)));
    let mut text = Vec::new();
    TextEncoder::new().encode(&families.into_values().collect::<Vec<_>>(), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn label(cluster: &ClusterName) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(CLUSTER.to_owned());
    label.set_value(cluster.to_string());
    label
}

/// A scrape of one cluster, without its name.
#[cfg(test)]
pub fn page_of(metrics: &Metrics) -> String {
    let (name, progress) = ("main".parse().unwrap(), Progress::default());
    let text = render(std::iter::once((&name, metrics, &progress))).unwrap();
    text.replace("{cluster=\"main\"}", "").replace("cluster=\"main\",", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_several_clusters_stand_together_under_one_head() {
        let names: [ClusterName; 2] = ["billing".parse().unwrap(), "shop".parse().unwrap()];
        let (metrics, progress) = ([Metrics::new().unwrap(), Metrics::new().unwrap()], Progress::default());
        metrics[1].error("denied");
        let text = render(names.iter().zip(&metrics).map(|(name, metrics)| (name, metrics, &progress))).unwrap();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("walkeep_errors_total") && (line.starts_with('#') || line.contains("\"denied\"")))
            .collect();
        let samples = lines[lines.len() - 2..].to_vec();
        assert_eq!(
            samples,
            ["walkeep_errors_total{cluster=\"billing\",kind=\"denied\"} 0", "walkeep_errors_total{cluster=\"shop\",kind=\"denied\"} 1",]
        );
        for head in ["# HELP ", "# TYPE "] {
            let mut heads: Vec<&str> = text.lines().filter(|line| line.starts_with(head)).collect();
            let all = heads.len();
            heads.dedup();
            assert_eq!((heads.len(), all > 20), (all, true), "{text}");
        }
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let (of_process, of_clusters): (Vec<&str>, Vec<&str>) =
            samples.partition(|line| line.starts_with("process_") || line.starts_with("walkeep_tasks"));
        assert!(of_clusters.iter().all(|line| line.contains("cluster=\"")), "{text}");
        assert!(of_process.iter().any(|line| line.starts_with("process_resident_memory_bytes ")), "{text}");
        assert!(of_process.contains(&"walkeep_tasks 0"), "{text}");
    }
}
