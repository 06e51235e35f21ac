//! Puts good copies where one of several repositories has something damaged, or lost it.
//!
//! A good copy is read from another repository and proven before anything is touched, and is in memory until it is stored; what no other has whole is left as it
//! is. What is damaged was read twice, both times the same and both times not what was stored, before it is taken away; that is noted beside the spool first, so
//! that what is killed between the two is told as missing, and put by the next run. The good copy itself is never removed: only the repository that is mended is
//! written to.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use walkeep_core::layout::ObjectName;
use walkeep_core::verify::{Finding, Judge, Kind, Severity};
use walkeep_store::ErrorKind;

use super::Overall;
use super::elsewhere::Wanted;
use super::places::{Everywhere, Place, SeenPlace};
use crate::repository::trail::{self, Lies};
use crate::repository::{ClusterRepository, Error, Result};
use crate::retry::{Backoff, retry};

/// For so long a repository may be out of reach.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What is to be done, in this order.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Plan {
    /// What is put.
    pub steps: Vec<Step>,
    /// What no other repository has whole: it is left as it is.
    pub without: Vec<Without>,
}

/// An object to be put.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// The number of the repository that is mended.
    pub repository: usize,
    /// Where it lies.
    pub url: String,
    /// The object.
    pub key: String,
    /// Whether something damaged lies there, to be taken away first; else it is missing.
    pub damaged: bool,
    /// Its bytes where it is whole.
    pub bytes: u64,
    /// The repositories that it may be taken from.
    pub from: Vec<usize>,
    /// What came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Of what was put and is encrypted for none of the recipients that are configured now, as far as can be told here: whom it is encrypted for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub only_for: Vec<String>,
    #[serde(skip)]
    wanted: Wanted,
    /// The keys of what has to be there before it.
    #[serde(skip)]
    behind: Arc<[String]>,
}

/// Something without a good copy.
#[derive(Debug, Clone, Serialize)]
pub struct Without {
    /// The repository's number.
    pub repository: usize,
    /// The object; of several that are missing in a row, the first.
    pub key: String,
    /// Whether another repository has it, and something of what it names is nowhere.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lacks_others: bool,
    /// Whether another repository lists it, and this host cannot prove what lies there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unproven: bool,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "result", content = "reason")]
pub enum Outcome {
    /// The good copy is there, and was read back.
    Put,
    /// It was whole when it was looked at again: nothing was changed.
    WasWhole,
    /// Nothing was changed, and why.
    NotDone(String),
    /// The damaged one was taken away, or may have been, and the good one is not there yet: the next run puts it.
    Unfinished(String),
}

/// What can be mended of what was found.
pub async fn plan(everywhere: &Everywhere, overall: &Overall) -> Result<Plan> {
    let (mut plan, mut planned) = (Plan::default(), BTreeSet::new());
    let is_wrong = |found: &&super::Found| found.finding.severity > Severity::Note && found.finding.kind.is_mendable();
    let damaged: HashSet<(usize, &str)> = {
        let damaged = overall.findings.iter().filter(is_wrong).filter(|found| found.finding.kind != Kind::Missing);
        damaged.map(|found| (found.repository, found.finding.key.as_str())).collect()
    };
    for found in overall.findings.iter().filter(is_wrong) {
        let mut copies = everywhere.copies(found.repository, &found.finding).await?;
        let can_prove = |wanted: &Wanted| everywhere.can_prove(&wanted.name);
        let unproven = copies.complete && (copies.blind || !copies.objects.iter().all(can_prove));
        if unproven || !copies.complete {
            let lacks_others = !unproven && copies.objects.iter().any(|wanted| everywhere.key(&wanted.name) == found.finding.key);
            plan.without.push(Without { repository: found.repository, key: found.finding.key.clone(), lacks_others, unproven });
        }
        copies.objects.retain(can_prove);
        let data = copies.objects.iter().filter(|wanted| !wanted.name.names_others()).map(|wanted| everywhere.key(&wanted.name));
        let data: Arc<[String]> = data.collect();
        for wanted in copies.objects {
            let names_others = wanted.name.names_others();
            // What it names is not all there to be brought.
            if names_others && (unproven || !copies.complete) {
                continue;
            }
            let key = everywhere.key(&wanted.name);
            if !planned.insert((found.repository, key.clone())) {
                continue;
            }
            plan.steps.push(Step {
                repository: found.repository,
                url: found.url.clone(),
                damaged: found.finding.kind != Kind::Missing || damaged.contains(&(found.repository, key.as_str())),
                key,
                bytes: wanted.at.first().map_or(0, |(_, listed)| listed.size),
                from: wanted.at.iter().map(|(number, _)| *number).collect(),
                outcome: None,
                only_for: Vec::new(),
                wanted,
                behind: if names_others { data.clone() } else { Arc::default() },
            });
        }
    }
    // What names others comes behind them, and not at all where one of them does not come.
    plan.steps.sort_by_key(|step| match &step.wanted.name {
        name if name.names_others() => 2,
        ObjectName::BackupManifest(..) => 1,
        _ => 0,
    });
    Ok(plan)
}

impl Plan {
    /// Whether all steps of a later plan are steps of this one.
    pub fn has_all_of(&self, later: &Self) -> bool {
        later.steps.iter().all(|step| self.steps.iter().any(|known| known.is_of(step)))
    }

    /// How many objects were put.
    pub fn put(&self) -> usize {
        self.steps.iter().filter(|step| step.outcome == Some(Outcome::Put)).count()
    }

    /// With what was done behind it; of what was tried once more that counts.
    pub fn and(&mut self, later: Self) {
        self.steps.retain(|known| !later.steps.iter().any(|step| known.is_of(step)));
        self.steps.extend(later.steps);
        self.without = later.without;
    }
}

impl Step {
    fn is_of(&self, other: &Self) -> bool {
        (self.repository, &self.key) == (other.repository, &other.key)
    }
}

/// Does it. `tell` is told of each step that is done.
pub async fn carry_out(
    plan: &mut Plan,
    everywhere: &Everywhere,
    places: &mut [Place],
    cancel: &CancellationToken,
    tell: &(dyn Fn(&Step) + Sync),
) -> Result<()> {
    let done = steps(plan, everywhere, places, cancel, tell).await;
    for place in places {
        place.memory.keep().await;
    }
    done
}

async fn steps(
    plan: &mut Plan,
    everywhere: &Everywhere,
    places: &mut [Place],
    cancel: &CancellationToken,
    tell: &(dyn Fn(&Step) + Sync),
) -> Result<()> {
    let (mut failed, mut rotten) = (HashSet::new(), Vec::new());
    for step in &mut plan.steps {
        if cancel.is_cancelled() {
            return Err(Error::cancelled("repair", &step.key));
        }
        let Some(place) = places.iter_mut().find(|place| place.number == step.repository) else { continue };
        let lacks = step.behind.iter().find(|key| failed.contains(&(step.repository, (*key).clone())));
        let outcome = match lacks {
            Some(key) => Outcome::NotDone(format!("it is put behind all that it names, and {key} is not there")),
            None => match mend(step, everywhere, place, &mut rotten, cancel).await {
                Ok((outcome, only_for)) => {
                    step.only_for = only_for;
                    outcome
                }
                Err(error) if cancel.is_cancelled() => return Err(error),
                // What one object hinders is no reason to leave the others as they are.
                Err(error) => Outcome::NotDone(format!("it could not be looked at: {}", chain(&error))),
            },
        };
        if !matches!(outcome, Outcome::Put | Outcome::WasWhole) {
            failed.insert((step.repository, step.key.clone()));
        }
        step.outcome = Some(outcome);
        tell(step);
        // What was to be the good copy: that is known from now on.
        for (number, reason) in rotten.drain(..) {
            let (Some(place), Some(seen)) = (places.iter_mut().find(|place| place.number == number), everywhere.at(number)) else {
                continue;
            };
            seen.damaged(&step.wanted.name, reason).iter().for_each(|finding| place.memory.damaged(finding));
        }
    }
    Ok(())
}

async fn mend(
    step: &Step,
    everywhere: &Everywhere,
    place: &mut Place,
    rotten: &mut Vec<(usize, String)>,
    cancel: &CancellationToken,
) -> Result<(Outcome, Vec<String>)> {
    let mut only_for = Vec::new();
    let outcome = mend_with(step, everywhere, place, rotten, &mut only_for, cancel).await?;
    Ok((outcome, only_for))
}

async fn mend_with(
    step: &Step,
    everywhere: &Everywhere,
    place: &mut Place,
    rotten: &mut Vec<(usize, String)>,
    only_for: &mut Vec<String>,
    cancel: &CancellationToken,
) -> Result<Outcome> {
    let (name, target) = (&step.wanted.name, place.repository.clone());
    let lying = lying(&target, name, cancel).await?;
    if let (ObjectName::Audit(number), Lying::Bytes(bytes)) = (name, &lying)
        && trail::has_its_place(&target, *number, bytes).await?
    {
        return Ok(Outcome::WasWhole);
    }
    let (good, reasons) = everywhere.good_copy(&step.wanted, place, &lying, rotten).await;
    let Some(good) = good else { return Ok(Outcome::NotDone(format!("no other repository has it whole: {reasons}"))) };
    let there = match lying {
        Lying::Nothing => false,
        Lying::Bytes(bytes) if bytes == good => return Ok(Outcome::WasWhole),
        Lying::Bytes(_) if proves_itself(name) && target.whole_object(name).await.is_ok_and(|whole| whole.is_some()) => {
            return Ok(Outcome::WasWhole);
        }
        Lying::Bytes(_) | Lying::Unreadable => true,
        Lying::Unsteady => {
            return Ok(Outcome::NotDone("two reads of it differ: the way to it may be at fault, and not what is stored".into()));
        }
    };
    if there && !place.memory.note_mending(&step.key, true).await {
        let reason = "that it is taken away cannot be noted (mending-HASH.json in the spool folder, or in the user's cache): it would not be known behind a crash";
        return Ok(Outcome::NotDone(reason.to_owned()));
    }
    let removed = if there { target.take_away(name).await } else { Ok(()) };
    if let Err(error) = &removed
        && error.is_denied()
    {
        return not_removed(step, place, error).await;
    }
    // Behind any other failure it may be gone, or go yet: the good one is put all the same, and only where nothing lies.
    let put = || target.put_back(name, good.clone());
    match (retry("repair", Backoff::within(PATIENCE), cancel, Error::is_transient, put).await, removed) {
        (Ok(()), _) => {}
        (Err(put), Err(error)) if is_taken(&put) => return not_removed(step, place, &error).await,
        (Err(error), _) if there => return Ok(Outcome::Unfinished(chain(&error))),
        (Err(error), _) => return Ok(Outcome::NotDone(format!("it cannot be stored: {}", chain(&error)))),
    }
    match target.stored_object(name).await {
        Ok(Some(back)) if back == good => {}
        Ok(_) => return Ok(Outcome::Unfinished("what was stored did not come back as it was".into())),
        Err(error) => return Ok(Outcome::Unfinished(format!("it cannot be read back: {}", chain(&error)))),
    }
    if place.memory.mending().contains(&step.key) {
        place.memory.note_mending(&step.key, false).await;
    }
    place.memory.forget_damage(&step.key);
    *only_for = target.only_for(name, &good);
    Ok(Outcome::Put)
}

/// The damaged one lies where it was.
async fn not_removed(step: &Step, place: &mut Place, error: &Error) -> Result<Outcome> {
    place.memory.note_mending(&step.key, false).await;
    Ok(Outcome::NotDone(format!("the damaged one cannot be removed: {}", chain(error))))
}

fn is_taken(error: &Error) -> bool {
    matches!(error, Error::Store(error) if error.kind() == ErrorKind::AlreadyExists)
}

/// What lies where something is to be mended.
enum Lying {
    Nothing,
    Bytes(bytes::Bytes),
    /// The store itself says that it is damaged.
    Unreadable,
    /// Now so, now otherwise.
    Unsteady,
}

/// Read twice: what is taken away for being damaged is so each time.
async fn lying(target: &ClusterRepository, name: &ObjectName, cancel: &CancellationToken) -> Result<Lying> {
    let once = || async {
        match target.stored_object(name).await {
            Err(error) if error.is_damage() => Ok(Lying::Unreadable),
            Ok(None) => Ok(Lying::Nothing),
            Ok(Some(bytes)) => Ok(Lying::Bytes(bytes)),
            Err(error) => Err(error),
        }
    };
    let first = retry("repair", Backoff::within(PATIENCE), cancel, Error::is_transient, once).await?;
    let second = retry("repair", Backoff::within(PATIENCE), cancel, Error::is_transient, once).await?;
    Ok(match (first, second) {
        (Lying::Nothing, Lying::Nothing) => Lying::Nothing,
        (Lying::Unreadable, Lying::Unreadable) => Lying::Unreadable,
        (Lying::Bytes(one), Lying::Bytes(other)) if one == other => Lying::Bytes(one),
        _ => Lying::Unsteady,
    })
}

/// Whether its own bytes tell that it is whole. What others must say of it was asked of the whole repository.
fn proves_itself(name: &ObjectName) -> bool {
    matches!(name, ObjectName::Pack(_) | ObjectName::Wal(_) | ObjectName::OtherPartial { .. } | ObjectName::Part(_))
        || matches!(name, ObjectName::ArtifactPiece(..) | ObjectName::Digest(_) | ObjectName::Blocks(_) | ObjectName::Names(_))
        || matches!(name, ObjectName::DrillReport(..) | ObjectName::Sample(_))
}

fn chain(error: &Error) -> String {
    format!("{:#}", anyhow::anyhow!("{error}"))
}

impl Everywhere {
    /// The first copy that is proven whole and may take the place of what lies in `target`, else why each is not.
    /// Those that are damaged are noted with their repositories' numbers.
    async fn good_copy(
        &self,
        wanted: &Wanted,
        target: &Place,
        lying: &Lying,
        rotten: &mut Vec<(usize, String)>,
    ) -> (Option<bytes::Bytes>, String) {
        let mut reasons = Vec::new();
        for (number, _) in &wanted.at {
            let Some(seen) = self.at(*number) else { continue };
            match seen.repository.whole_object(&wanted.name).await {
                Ok(Some(good)) => match self.doubt_about(&wanted.name, seen, target, lying, &good).await {
                    Ok(None) => return (Some(good), String::new()),
                    Ok(Some(doubt)) => reasons.push(format!("repository {number}: {doubt}")),
                    Err(error) => reasons.push(format!("repository {number}: {error}")),
                },
                Ok(None) => reasons.push(format!("repository {number} does not have it any more")),
                Err(error) if error.is_damage() => {
                    rotten.push((*number, error.to_string()));
                    reasons.push(format!("repository {number}: {error}"));
                }
                Err(error) => reasons.push(format!("repository {number}: {error}")),
            }
        }
        (None, reasons.join("; "))
    }

    /// Why a copy that was proven as far as its own bytes go must not be put instead of what lies there.
    async fn doubt_about(
        &self,
        name: &ObjectName,
        source: &SeenPlace,
        target: &Place,
        lying: &Lying,
        good: &bytes::Bytes,
    ) -> Result<Option<String>> {
        let ObjectName::Audit(number) = name else { return Ok(None) };
        let lies = match lying {
            Lying::Nothing => Lies::Nothing,
            Lying::Bytes(bytes) => Lies::Bytes(bytes),
            Lying::Unreadable | Lying::Unsteady => Lies::Unreadable,
        };
        let others = self.beside([source.number, target.number]);
        trail::doubt(&source.repository, &target.repository, &others, *number, good, lies).await
    }

    fn key(&self, name: &ObjectName) -> String {
        self.seen.first().map_or_else(String::new, |seen| seen.repository.layout().key(name))
    }
}

impl SeenPlace {
    /// That an object there is damaged.
    pub(super) fn damaged(&self, name: &ObjectName, reason: String) -> Option<Finding> {
        let judge = Judge::new(&self.catalog, self.repository.layout());
        let ObjectName::Pack(_) = name else { return judge.finding(Kind::Content, name, reason) };
        let finding = judge.pack(Kind::Content, self.repository.layout().key(name), reason, []);
        let advice = "which backups need it `walkeep verify --deep` says".to_owned();
        Some(Finding { severity: Severity::Damage, advice, ..finding })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use walkeep_core::WalFileName;
    use walkeep_store::several::{Follow, StoredWhen};
    use walkeep_store::{Fault, MemoryStore, Operation, Rule, Several, SharedStore, Store};

    use super::super::pace::Pace;
    use super::super::tests::{Two, entry, key, put, remembered, wrong};
    use super::super::{Read, Wish, everywhere};
    use super::*;
    use crate::encryption::Encryption;
    use crate::encryption::keys::{self, Identities, Recipients, RecipientsSource};
    use crate::repository::tests::{encrypted, segment};

    /// Everything read, and mended what can be.
    async fn repaired(two: &Two, places: &mut [Place]) -> (Plan, Overall) {
        let (cancel, pace) = (CancellationToken::new(), Pace::of(None));
        let deep = Wish { read: Some(Read::all(&pace, 2)), ..Wish::look(&cancel) };
        let (report, seen) = everywhere(&deep, places).await.unwrap();
        let mut plan = plan(&seen, &report).await.unwrap();
        carry_out(&mut plan, &seen, places, &cancel, &|_| {}).await.unwrap();
        assert_eq!(two.stores.each_ref().map(|store| store.contains(&"walkeep.json".parse().unwrap())), [true, true]);
        (plan, everywhere(&Wish::look(&cancel), places).await.unwrap().0)
    }

    fn outcomes(plan: &Plan) -> Vec<(usize, bool, Outcome)> {
        plan.steps.iter().map(|step| (step.repository, step.damaged, step.outcome.clone().unwrap())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn each_gets_what_the_other_has_whole_and_nothing_else_is_touched() {
        let (two, folder) = (Two::begin().await, tempfile::tempdir().unwrap());
        let good = two.stores[0].get(&key(&two.both, 2), None).await.unwrap();
        two.stores[0].overwrite(&key(&two.both, 2), Bytes::from(vec![7; 4000]));
        two.stores[1].delete(&key(&two.both, 3)).await.unwrap();
        for (store, byte) in two.stores.iter().zip([1, 2]) {
            store.overwrite(&key(&two.both, 4), Bytes::from(vec![byte; 4000]));
        }
        let (plan, report) = repaired(&two, &mut two.remembering(Some(folder.path()))).await;
        let mut done = outcomes(&plan);
        done.sort_by_key(|(repository, ..)| *repository);
        assert_eq!(done, [(1, true, Outcome::Put), (2, false, Outcome::Put)]);
        assert_eq!(plan.without.len(), 2);
        assert_eq!(two.stores[0].get(&key(&two.both, 2), None).await.unwrap(), good);
        // Of what nobody has whole both stay as they are.
        for (store, byte) in two.stores.iter().zip([1, 2]) {
            assert_eq!(store.get(&key(&two.both, 4), None).await.unwrap(), vec![byte; 4000]);
        }
        assert!(wrong(&report).iter().all(|(_, bad, _, _)| *bad == key(&two.both, 4).to_string()), "{:?}", wrong(&report));
    }

    /// Somebody who knows a key that is no recipient any more exchanged the good one: it is proven, and only that key opens it.
    #[tokio::test(start_paused = true)]
    async fn what_is_put_and_none_of_the_recipients_opens_is_told() {
        let ([ours, other], folder) = ([keys::generate(), keys::generate()], tempfile::tempdir().unwrap());
        let source = |recipient: &str| RecipientsSource::new(Recipients::parse_list(recipient).unwrap(), None);
        let both = Identities::parse_list(&format!("{}\n{}", ours.0.reveal(), other.0.reveal()), "test").unwrap();
        let stores = [(); 2].map(|()| Arc::new(MemoryStore::new()));
        let several = Several::new(stores.iter().map(|store| store.clone() as SharedStore).collect(), StoredWhen::All, Follow::Queued);
        let all = Arc::new(encrypted(Arc::new(several), Encryption::new(source(&ours.1), both.clone())).await);
        put(&all, 1..6).await;
        let elsewhere = Arc::new(MemoryStore::new());
        put(&encrypted(elsewhere.clone(), Encryption::new(source(&other.1), both)).await, 1..6).await;
        let key = |number| key(&all, number);
        stores[1].overwrite(&key(3), elsewhere.get(&key(3), None).await.unwrap());
        for number in [2, 3] {
            stores[0].overwrite(&key(number), Bytes::from(vec![7; 4000]));
        }
        let (cancel, pace) = (CancellationToken::new(), Pace::of(None));
        let deep = Wish { read: Some(Read::all(&pace, 2)), ..Wish::look(&cancel) };
        let mut places = remembered(&all, Some(folder.path()), &["one", "two"]);
        let (report, seen) = everywhere(&deep, &mut places).await.unwrap();
        let mut plan = plan(&seen, &report).await.unwrap();
        carry_out(&mut plan, &seen, &mut places, &cancel, &|_| {}).await.unwrap();
        let mut done: Vec<_> =
            plan.steps.iter().map(|step| (step.key.clone(), step.outcome.clone().unwrap(), step.only_for.clone())).collect();
        done.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(done, [(key(2).to_string(), Outcome::Put, vec![]), (key(3).to_string(), Outcome::Put, vec![other.1.clone()])]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_removed_or_noted_stays_as_it_is() {
        let (two, folder) = (Two::begin().await, tempfile::tempdir().unwrap());
        let bad = Bytes::from(vec![7; 4000]);
        two.stores[1].overwrite(&key(&two.both, 2), bad.clone());
        let (plan, _) = repaired(&two, &mut two.places()).await;
        assert!(matches!(&outcomes(&plan)[..], [(2, true, Outcome::NotDone(why))] if why.contains("noted")), "{plan:?}");
        two.faulty.inject(Rule::new(Operation::Delete, Fault::Fail(ErrorKind::Denied)));
        let mut places = two.remembering(Some(folder.path()));
        let (plan, report) = repaired(&two, &mut places).await;
        assert!(matches!(&outcomes(&plan)[..], [(2, true, Outcome::NotDone(why))] if why.contains("cannot be removed")), "{plan:?}");
        assert_eq!((two.stores[1].get(&key(&two.both, 2), None).await.unwrap(), wrong(&report).len()), (bad, 1));
        assert!(places[1].memory.mending().is_empty());
        // A way that changes bytes is no damage: what is stored is whole.
        two.faulty.heal();
        let (plan, report) = repaired(&two, &mut places).await;
        assert_eq!((outcomes(&plan), wrong(&report)), (vec![(2, true, Outcome::Put)], vec![]));
        two.faulty.inject(Rule::new(Operation::Get, Fault::Flip(3000)).on(key(&two.both, 3).as_str()).times(4));
        let (plan, _) = repaired(&two, &mut places).await;
        assert!(matches!(&outcomes(&plan)[..], [(2, true, Outcome::NotDone(why))] if why.contains("differ")), "{plan:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_removal_without_an_answer_may_have_been_done() {
        let (two, folder) = (Two::begin().await, tempfile::tempdir().unwrap());
        let mut places = two.remembering(Some(folder.path()));
        let (good, bad) = (two.stores[0].get(&key(&two.both, 2), None).await.unwrap(), Bytes::from(vec![7; 4000]));
        two.stores[1].overwrite(&key(&two.both, 2), bad.clone());
        // It was not: nothing is missing.
        two.faulty.inject(Rule::new(Operation::Delete, Fault::Fail(ErrorKind::Transient)));
        let (plan, report) = repaired(&two, &mut places).await;
        assert!(matches!(&outcomes(&plan)[..], [(2, true, Outcome::NotDone(why))] if why.contains("cannot be removed")), "{plan:?}");
        assert_eq!((two.stores[1].get(&key(&two.both, 2), None).await.unwrap(), wrong(&report).len()), (bad, 1));
        assert!(places[1].memory.mending().is_empty());
        // It was, and nothing can be put: that is known to the next run.
        two.faulty.heal();
        two.faulty.inject(Rule::new(Operation::Delete, Fault::LoseAnswer));
        two.faulty.inject(Rule::new(Operation::Put, Fault::Fail(ErrorKind::Denied)));
        let (plan, _) = repaired(&two, &mut places).await;
        assert!(matches!(&outcomes(&plan)[..], [(2, true, Outcome::Unfinished(_))]), "{plan:?}");
        assert_eq!(places[1].memory.mending().iter().collect::<Vec<_>>(), [key(&two.both, 2).as_str()]);
        // It was, and the good one comes behind it.
        two.stores[1].overwrite(&key(&two.both, 2), Bytes::from(vec![7; 4000]));
        two.faulty.heal();
        two.faulty.inject(Rule::new(Operation::Delete, Fault::LoseAnswer));
        let (plan, report) = repaired(&two, &mut places).await;
        assert_eq!((outcomes(&plan), wrong(&report)), (vec![(2, true, Outcome::Put)], vec![]));
        assert_eq!(two.stores[1].get(&key(&two.both, 2), None).await.unwrap(), good);
        assert!(places[1].memory.mending().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_looked_at_hinders_only_itself() {
        let (two, folder) = (Two::begin().await, tempfile::tempdir().unwrap());
        let mut places = two.remembering(Some(folder.path()));
        for number in [2, 3] {
            two.stores[1].overwrite(&key(&two.both, number), Bytes::from(vec![7; 4000]));
        }
        let (cancel, pace) = (CancellationToken::new(), Pace::of(None));
        let deep = Wish { read: Some(Read::all(&pace, 2)), ..Wish::look(&cancel) };
        let (report, seen) = everywhere(&deep, &mut places).await.unwrap();
        let mut plan = plan(&seen, &report).await.unwrap();
        two.faulty.inject(Rule::new(Operation::Get, Fault::Fail(ErrorKind::Denied)).on(key(&two.both, 2).as_str()));
        carry_out(&mut plan, &seen, &mut places, &cancel, &|_| {}).await.unwrap();
        let done = outcomes(&plan);
        assert!(matches!(&done[..], [(2, true, Outcome::NotDone(why)), (2, true, Outcome::Put)] if why.contains("looked at")), "{done:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_of_the_trail_is_replaced_only_where_those_beside_it_prove_the_copy() {
        let (two, folder) = (Two::begin().await, tempfile::tempdir().unwrap());
        let mut places = two.remembering(Some(folder.path()));
        let mut head = None;
        for _ in 0..5 {
            two.both.append_audit(&mut head, &entry()).await.unwrap();
        }
        let record = |number| two.both.layout().key(&ObjectName::Audit(number)).parse::<walkeep_store::Key>().unwrap();
        let whole = async |number| two.stores[0].get(&record(number), None).await.unwrap();
        let changed = async |number| {
            let mut value: serde_json::Value = serde_json::from_slice(&whole(number).await).unwrap();
            value["command"] = "restore".into();
            Bytes::from(serde_json::to_vec_pretty(&value).unwrap())
        };
        let (third, last) = (whole(3).await, whole(5).await);
        two.stores[1].overwrite(&record(3), changed(3).await);
        let (plan, report) = repaired(&two, &mut places).await;
        assert_eq!((outcomes(&plan), wrong(&report)), (vec![(2, true, Outcome::Put), (2, true, Outcome::WasWhole)], vec![]));
        assert_eq!(two.stores[1].get(&record(3), None).await.unwrap(), third);
        // Of the last one nothing tells which of the two was changed: it stays, whatever the other repository has.
        let folder = tempfile::tempdir().unwrap();
        let mut places = two.remembering(Some(folder.path()));
        two.stores[1].overwrite(&record(4), changed(4).await);
        two.stores[0].overwrite(&record(5), changed(5).await);
        let (plan, _) = repaired(&two, &mut places).await;
        let done = outcomes(&plan);
        let stays = |why: &str| why.contains("no record 6");
        assert!(done.contains(&(2, true, Outcome::Put)), "{done:?}");
        assert!(done.iter().any(|(number, _, done)| *number == 2 && matches!(done, Outcome::NotDone(why) if stays(why))), "{done:?}");
        assert_eq!(two.stores[1].get(&record(5), None).await.unwrap(), last);
    }

    /// Killed between the two: of a `.partial`, which nothing misses.
    #[tokio::test(start_paused = true)]
    async fn what_was_taken_away_and_not_put_is_put_by_the_next_run() {
        let (two, folder) = (Two::begin().await, tempfile::tempdir().unwrap());
        let name = WalFileName::Partial(segment(6));
        two.both.put_wal(name, two.both.get_wal(WalFileName::Segment(segment(5))).await.unwrap().unwrap().content).await.unwrap();
        let partial: walkeep_store::Key = two.both.layout().wal_key(name).parse().unwrap();
        two.stores[1].overwrite(&partial, Bytes::from(vec![7; 4000]));
        two.faulty.inject(Rule::new(Operation::Put, Fault::Hang));
        let mut places = two.remembering(Some(folder.path()));
        let killed = tokio::time::timeout(Duration::from_secs(3600), repaired(&two, &mut places)).await;
        assert!(killed.is_err() && !two.stores[1].contains(&partial));
        two.faulty.heal();
        let cancel = CancellationToken::new();
        let mut places = two.remembering(Some(folder.path()));
        let (report, _) = everywhere(&Wish::look(&cancel), &mut places).await.unwrap();
        assert_eq!(wrong(&report), [(2, partial.to_string(), Kind::Missing, vec![1])]);
        // Also where the repository is behind: nobody but a repair brings it.
        let behind = |_: &str| Some(std::time::SystemTime::UNIX_EPOCH);
        let (report, _) = everywhere(&Wish { behind: &behind, ..Wish::look(&cancel) }, &mut places).await.unwrap();
        assert_eq!(wrong(&report), [(2, partial.to_string(), Kind::Missing, vec![1])]);
        let (plan, report) = repaired(&two, &mut places).await;
        assert_eq!((outcomes(&plan), wrong(&report)), (vec![(2, false, Outcome::Put)], vec![]));
        assert_eq!(two.stores[1].get(&partial, None).await.unwrap(), two.stores[0].get(&partial, None).await.unwrap());
    }
}
