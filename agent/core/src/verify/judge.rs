//! What a damaged or missing object means.

use super::finding::{Finding, Kind, Severity, Stretch};
use super::lost::{Lost, Path};
use crate::audit::copies::Copies;
use crate::catalog::{Catalog, WalRange};
use crate::identity::TimelineId;
use crate::layout::{BackupId, ClusterLayout, ObjectName, PackId};
use crate::lsn::Lsn;
use crate::wal_file::WalFileName;

/// What is done about most things.
const FROM_A_COPY: &str = "put it back from a copy of the repository; without one, take a new base backup now (`walkeep backup --full`): it needs nothing of this";
const REBUILD: &str = "nothing is lost: `walkeep index --rebuild` makes it again out of the WAL";

/// Knows what is stored, and so what is lost with what is not.
#[derive(Debug)]
pub struct Judge<'a> {
    catalog: &'a Catalog,
    layout: &'a ClusterLayout,
    paths: Vec<Path>,
}

impl<'a> Judge<'a> {
    /// By this catalog.
    pub fn new(catalog: &'a Catalog, layout: &'a ClusterLayout) -> Self {
        Self { catalog, layout, paths: Path::all(catalog) }
    }

    /// What is stored.
    pub fn catalog(&self) -> &'a Catalog {
        self.catalog
    }

    /// The keys.
    pub fn layout(&self) -> &'a ClusterLayout {
        self.layout
    }

    /// What is lost with a stretch of a timeline's files.
    pub fn lost_with(&self, timeline: TimelineId, stretch: WalRange) -> Lost {
        let mut lost = Lost::default();
        self.paths.iter().for_each(|path| path.lost_with(self.catalog, timeline, stretch, &mut lost));
        lost.merge(Lost::default());
        lost
    }

    /// The finding that a stretch of WAL is not there, told at its first segment.
    pub fn missing(&self, timeline: TimelineId, stretch: WalRange, reason: String) -> Finding {
        let size = self.catalog.segment_size();
        let segment = size.segment_of(stretch.from).name(timeline, size);
        let (key, lost) = (self.layout.wal_key(WalFileName::Segment(segment)), self.lost_with(timeline, stretch));
        let stretch = Stretch { timeline, from: stretch.from, to: stretch.to };
        Finding { stretch: Some(stretch), ..self.of_wal(Kind::Missing, key, reason, lost) }
    }

    /// The finding that an object is not what it should be; `None` of one that is on its way out.
    pub fn finding(&self, kind: Kind, name: &ObjectName, reason: String) -> Option<Finding> {
        let (key, size) = (self.layout.key(name), self.catalog.segment_size());
        let expired = self.catalog.expired();
        let minor = |advice: &str| Finding {
            severity: Severity::Minor,
            kind,
            key: key.clone(),
            reason: reason.clone(),
            stretch: None,
            lost: Lost::default(),
            advice: advice.to_owned(),
        };
        let broken = |lost: Lost, advice: &str| Finding { severity: Severity::Damage, lost, ..minor(advice) };
        Some(match name {
            ObjectName::Wal(WalFileName::Segment(segment)) => {
                let Some(number) = segment.number(size) else { return Some(minor("it is of another segment size: nothing reads it")) };
                let (from, to) = (number.start(size), number.end(size));
                if expired.has_segment(segment.timeline(), from) {
                    return None;
                }
                let lost = self.lost_with(segment.timeline(), WalRange { from, to });
                self.of_wal(kind, key.clone(), reason.clone(), lost)
            }
            ObjectName::Part(part) => {
                let Some(number) = part.segment.number(size) else { return Some(minor("it is of another segment size: nothing reads it")) };
                let start = number.start(size);
                if expired.has_segment(part.segment.timeline(), start) {
                    return None;
                }
                if !self.catalog.unfinished(part.segment.timeline()).any(|(unfinished, _)| unfinished == number) {
                    return Some(minor("nothing reads it: the segment is stored as a whole, or parts before it are missing"));
                }
                let at = |offset: u32| start.saturating_add(u64::from(offset));
                let lost = self.lost_with(part.segment.timeline(), WalRange { from: at(part.from), to: at(part.to) });
                self.of_wal(kind, key.clone(), reason.clone(), lost)
            }
            ObjectName::Wal(WalFileName::History(timeline)) => {
                let mut lost = Lost::default();
                for path in self.paths.iter().filter(|path| path.has(*timeline)) {
                    lost.merge(Lost::backups(path.backups()));
                }
                let on_it = |backup: &&crate::backup::BackupRecord| backup.timeline == *timeline || backup.stops_on() == *timeline;
                lost.merge(Lost::backups(self.catalog.backups().iter().filter(on_it).map(|backup| backup.id.clone())));
                let advice = "put it back from a copy of the repository, or from pg_wal of a server of that timeline, offered once more by archive_command";
                broken(lost, advice)
            }
            ObjectName::Wal(WalFileName::Partial(_) | WalFileName::BackupHistory { .. }) | ObjectName::OtherPartial { .. } => {
                minor("no recovery reads it; it may be removed")
            }
            ObjectName::Pack(_) => minor("no backup that is there needs it"),
            ObjectName::BackupManifest(id, _) | ObjectName::BackupRecord(id) if expired.has_backup(id) => return None,
            ObjectName::BackupManifest(id, _) if self.catalog.backup(id).is_none() => {
                minor("it belongs to a backup that was never finished")
            }
            ObjectName::BackupManifest(id, _) | ObjectName::BackupRecord(id) => broken(Lost::backups([id.clone()]), FROM_A_COPY),
            ObjectName::BackupBegun(_) => minor("it is a note for people: it may be removed once the backup has its record"),
            ObjectName::Hold(id, _) => broken(
                Lost::default(),
                &format!("say again for how long the backup is to be kept: `walkeep keep {id}` or `walkeep release {id}`"),
            ),
            ObjectName::Gap(_) | ObjectName::GapClosing(_) => {
                broken(Lost::default(), "put it back from a copy of the repository: plans do not know of the gap, or take it for open")
            }
            ObjectName::Lease(_) => {
                broken(Lost::default(), "put it back from a copy of the repository, or run `walkeep lease take` on the agent's host")
            }
            ObjectName::Digest(_) | ObjectName::Blocks(_) => minor(REBUILD),
            ObjectName::Names(_) => minor("names of relations at that time are not known; the agent takes others. It may be removed"),
            ObjectName::Audit(_) => {
                broken(Lost::default(), "put it back from a copy of the repository: the trail does not prove what it says any more")
            }
            ObjectName::ArtifactPiece(place, _) | ObjectName::ArtifactSummary(place) | ObjectName::ArtifactRecord(place)
                if expired.has_artifact(place) =>
            {
                return None;
            }
            ObjectName::ArtifactPiece(place, _) | ObjectName::ArtifactSummary(place) | ObjectName::ArtifactRecord(place) => broken(
                Lost::default(),
                &format!(
                    "put it back from a copy of the repository; without one {place} is lost: make another (`walkeep artifact run`, `walkeep dump`)"
                ),
            ),
            ObjectName::DrillRecord(_) | ObjectName::DrillReport(..) => {
                minor("no restore needs it: what was found by that drill is not told any more. `walkeep drill` makes another")
            }
            ObjectName::Sample(_) => minor("drills compare with another sample; the agent takes more. It may be removed"),
            ObjectName::ArtifactBegun(_) => minor("it is a note for people: it may be removed once the artifact has its record"),
            ObjectName::Expiry(_) | ObjectName::ExpiryEnd(_) => broken(
                Lost::default(),
                "put it back from a copy of the repository: without it nothing is planned, as what was let go is not known",
            ),
        })
    }

    /// The finding that a pack is not what these backups need; with what of it, in words.
    pub fn pack(&self, kind: Kind, key: String, reason: String, users: impl IntoIterator<Item = BackupId>) -> Finding {
        let lost = Lost::backups(users);
        let advice = match lost.is_nothing() {
            true => "no backup that is there needs it",
            false => FROM_A_COPY,
        };
        let severity = if lost.is_nothing() { Severity::Minor } else { Severity::Damage };
        Finding { severity, kind, key, reason, stretch: None, lost, advice: advice.to_owned() }
    }

    /// The finding that the repository of this number has something else under the name, and both are whole by themselves.
    pub fn differs(&self, name: &ObjectName, other: usize) -> Finding {
        let advice = "two servers wrote one archive, or an object was exchanged. Nothing that is stored says which of the two the server wrote: find the second writer before anything else, compare with pg_wal of the server or with `restore` from each, and take a base backup (`walkeep backup --full`)";
        Finding {
            severity: Severity::Damage,
            kind: Kind::Differs,
            key: self.layout.key(name),
            reason: format!("it holds something else than in repository {other}; each is whole by itself"),
            stretch: None,
            lost: Lost::default(),
            advice: advice.to_owned(),
        }
    }

    /// The finding that an object has so many bytes here and so many in repositories of these numbers, where this host can open none of them.
    pub fn sizes_differ(&self, name: &ObjectName, bytes: u64, others: &[(usize, u64)]) -> Finding {
        let others = others.iter().map(|(number, bytes)| format!("{bytes} in repository {number}")).collect::<Vec<_>>().join(" and ");
        let advice = "nothing is known to be lost: on a host with an identity `walkeep verify` reads each of them, and `--repair` puts the good one in the place of the damaged one";
        Finding {
            severity: Severity::Minor,
            kind: Kind::Differs,
            key: self.layout.key(name),
            reason: format!("it has {bytes} bytes here and {others}: one of them is damaged, which one cannot be told from here"),
            stretch: None,
            lost: Lost::default(),
            advice: advice.to_owned(),
        }
    }

    /// The finding that another repository has a pack and this one does not, by a host that cannot read which backups need it. Where it was put while this backup
    /// was taken it is that one's; else it may be what a backup left that is gone, and is a note.
    pub fn pack_lacking(&self, pack: PackId, of: Option<&BackupId>) -> Finding {
        let (severity, reason) = match of {
            Some(backup) => {
                let reason =
                    format!("another repository has it, put while backup {backup} was taken; who else needs it cannot be told from here");
                (Severity::Minor, reason)
            }
            None => {
                let reason = "another repository has it; whether any backup needs it cannot be told from here".to_owned();
                (Severity::Note, reason)
            }
        };
        let (key, kind) = (self.layout.key(&ObjectName::Pack(pack)), Kind::Missing);
        Finding { severity, kind, key, reason, stretch: None, lost: Lost::default(), advice: String::new() }
    }

    /// The finding that several repositories have different records of the trail in one place.
    pub fn record_differs(&self, name: &ObjectName, copies: &Copies) -> Finding {
        let advice = "no repair touches it, and what is recorded from now on says that it was so. Look which SHA-256 was noted elsewhere: the agent logs number and sha256 of each record (`audit record stored`). Put that object in the place of the others by hand, once a copy of them is kept: one was changed by somebody who may write there, or is damaged";
        Finding {
            severity: Severity::Damage,
            kind: Kind::Differs,
            key: self.layout.key(name),
            reason: format!("the repositories have different records here, and nothing stored tells which is the true one: {copies}"),
            stretch: None,
            lost: Lost::default(),
            advice: advice.to_owned(),
        }
    }

    /// The finding that an object is whole, and not locked as was promised.
    pub fn unlocked(&self, name: &ObjectName, reason: String) -> Finding {
        let advice = "nothing is lost: lock it by hand (put-object-retention), or take a backup, which locks the packs that it uses anew";
        let (key, kind, lost) = (self.layout.key(name), Kind::Lock, Lost::default());
        Finding { severity: Severity::Minor, kind, key, reason, stretch: None, lost, advice: advice.to_owned() }
    }

    /// What lies behind the present of a timeline that is known of by other means.
    pub fn stored_to(&self, timeline: TimelineId) -> Lsn {
        self.catalog.frontier(timeline).unwrap_or(Lsn::ZERO)
    }

    fn of_wal(&self, kind: Kind, key: String, reason: String, lost: Lost) -> Finding {
        match lost.is_nothing() {
            true => {
                let advice = "no backup that is there needs it";
                Finding { severity: Severity::Minor, kind, key, reason, stretch: None, lost, advice: advice.to_owned() }
            }
            false => {
                let advice = "put it back from a copy of the repository; without one, take a base backup now (`walkeep backup`): what is written behind it is within reach again";
                Finding { severity: Severity::Damage, kind, key, reason, stretch: None, lost, advice: advice.to_owned() }
            }
        }
    }
}
