//! Drills: reports, and the records that make them count. And samples of rows, with which drills compare.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use walkeep_core::drill::rows::{RowSample, SampleName};
use walkeep_core::drill::{DrillId, DrillRecord, DrillReport, Form};
use walkeep_core::layout::ObjectName;
use walkeep_core::sealed;
use walkeep_core::sha256::Sha256Sum;
use walkeep_store::{ListRequest, Put, list_all};

use super::catalog::READS;
use super::{ClusterRepository, Error, Result};
use crate::codec;

/// No form of a report has more bytes.
pub(super) const REPORT: u64 = 16 << 20;

impl ClusterRepository {
    /// Stores a report in all its forms, and then the record.
    pub async fn put_drill(&self, report: &DrillReport) -> Result<DrillRecord> {
        let id = &report.facts.id;
        let mut reports = BTreeMap::new();
        for form in Form::ALL {
            let body = Bytes::from(report.in_form(form).map_err(Error::encode)?);
            reports.insert(form, Sha256Sum::new(codec::sha256(&body)));
            self.put_object(ObjectName::DrillReport(id.clone(), form), report_title(id, form), None, REPORT, body).await?;
        }
        let record = DrillRecord { facts: report.facts.clone(), reports };
        let body = Bytes::from(sealed::to_json(&record).map_err(Error::encode)?);
        match self.store().put_if_absent(&self.key(&ObjectName::DrillRecord(id.clone()))?, body).await {
            Ok(Put::Created | Put::AlreadySame) => Ok(record),
            Err(error) => Err(error.into()),
        }
    }

    /// The drills there are, by when they began; the newest `most` of them. Those that cannot be read are named by their keys.
    pub async fn drills(&self, most: usize) -> Result<(Vec<DrillRecord>, Vec<String>)> {
        let request = ListRequest { prefix: self.layout().drills_prefix(), ..ListRequest::default() };
        let listed = list_all(self.store().as_ref(), request).await?.objects;
        let mut ids: Vec<DrillId> = listed
            .iter()
            .filter_map(|listed| match self.layout().parse(listed.key.as_str()) {
                Some(ObjectName::DrillRecord(id)) => Some(id),
                _ => None,
            })
            .collect();
        ids.sort();
        let newest = ids.split_off(ids.len().saturating_sub(most));
        let read = |id: DrillId| async move {
            match self.drill(&id).await {
                Ok(record) => Ok(record.map(Ok)),
                Err(Error::Corrupt { key, .. }) => Ok(Some(Err(key))),
                Err(error) => Err(error),
            }
        };
        let read: Vec<_> = stream::iter(newest.into_iter().map(read)).buffered(READS).try_collect().await?;
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for found in read.into_iter().flatten() {
            match found {
                Ok(record) => records.push(record),
                Err(key) => damaged.push(key),
            }
        }
        Ok((records, damaged))
    }

    /// One record; `None` if there is none.
    pub async fn drill(&self, id: &DrillId) -> Result<Option<DrillRecord>> {
        let name = ObjectName::DrillRecord(id.clone());
        let corrupt = |reason: String| Error::corrupt(self.layout().key(&name), reason);
        let parse = |body: &[u8]| {
            let record: DrillRecord = sealed::from_json(body).map_err(|error| corrupt(error.to_string()))?;
            if record.facts.format != DrillRecord::FORMAT {
                return Err(corrupt(format!("it has format {}: upgrade Walkeep", record.facts.format)));
            }
            if record.facts.id != *id || record.facts.system_identifier != self.identity().system_identifier {
                return Err(corrupt("it is another drill's record".into()));
            }
            Ok(record)
        };
        self.parsed(&name, parse).await
    }

    /// A report in one form, proven by its record.
    pub async fn drill_report(&self, record: &DrillRecord, form: Form) -> Result<Bytes> {
        let id = &record.facts.id;
        let name = ObjectName::DrillReport(id.clone(), form);
        let key = || self.layout().key(&name);
        let found = self.read(&name, &report_title(id, form), REPORT).await?.ok_or_else(|| Error::corrupt(key(), "it is gone"))?;
        match record.reports.get(&form) == Some(&Sha256Sum::new(codec::sha256(&found.content))) {
            true => Ok(found.content),
            false => Err(Error::corrupt(key(), "it has not the SHA-256 that its record names")),
        }
    }

    /// Stores a sample of rows. One of the same position that is there already stays: nothing was committed in between.
    pub async fn put_sample(&self, sample: &RowSample) -> Result<()> {
        let body = Bytes::from(serde_json::to_vec(sample).map_err(Error::encode)?);
        let name = sample.name;
        match self.put_object(ObjectName::Sample(name), sample_title(name), Some(name.lsn), RowSample::LONGEST, body).await {
            Ok(_) | Err(Error::Conflict { .. } | Error::CannotDecrypt { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The samples there are, by timeline and position.
    pub async fn samples(&self) -> Result<Vec<SampleName>> {
        let request = ListRequest { prefix: self.layout().samples_prefix(), ..ListRequest::default() };
        let listed = list_all(self.store().as_ref(), request).await?.objects;
        let names = listed.iter().filter_map(|listed| match self.layout().parse(listed.key.as_str()) {
            Some(ObjectName::Sample(name)) => Some(name),
            _ => None,
        });
        let mut names: Vec<SampleName> = names.collect();
        names.sort_unstable();
        Ok(names)
    }

    /// A sample that was listed.
    pub async fn sample(&self, name: SampleName) -> Result<RowSample> {
        let object = ObjectName::Sample(name);
        let corrupt = |reason: String| Error::corrupt(self.layout().key(&object), reason);
        let found = self.read(&object, &sample_title(name), RowSample::LONGEST).await?;
        let found = found.ok_or_else(|| corrupt("it was listed a moment ago and is gone".into()))?;
        let sample: RowSample = serde_json::from_slice(&found.content).map_err(|error| corrupt(error.to_string()))?;
        if sample.format != RowSample::FORMAT {
            return Err(corrupt(format!("it has format {}: upgrade Walkeep", sample.format)));
        }
        if sample.name == name { Ok(sample) } else { Err(corrupt("it is the sample of another position".into())) }
    }
}

pub(super) fn report_title(id: &DrillId, form: Form) -> String {
    format!("drill {id} {}", form.extension())
}

pub(super) fn sample_title(name: SampleName) -> String {
    format!("sample {} {:016X}", name.timeline.hex(), name.lsn.get())
}
