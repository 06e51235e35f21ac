//! What a seed does to a repository.

use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest, Sha256};
use walkeep_store::Key;

use super::Objects;
use super::origin::Origin;

/// A changed repository.
pub struct Mutation {
    pub what: String,
    pub objects: Objects,
}

/// Numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Values that nobody should believe.
fn hostile(dice: &mut Dice) -> Value {
    let values = [
        Value::from(0),
        Value::from(-1),
        Value::from(1u64 << 63),
        Value::from(u64::MAX),
        Value::from(u32::MAX),
        Value::from(1e300),
        Value::Null,
        Value::Bool(true),
        Value::from(""),
        Value::from("FFFFFFFF/FFFFFFFF"),
        Value::from("0/0"),
        Value::from("../../../../etc/passwd"),
        Value::from("a\nb"),
        Value::from("x".repeat(1000)),
        Value::from("9999-12-31T23:59:59Z"),
        Value::Array(Vec::new()),
        Value::Array(vec![Value::from(u64::MAX); 3]),
        Value::Object(serde_json::Map::new()),
    ];
    dice.of(&values).clone()
}

impl Mutation {
    /// What this seed does.
    pub fn of(seed: u64, origin: &Origin) -> Self {
        let mut dice = Dice(seed);
        let mut objects = origin.objects.clone();
        let keys: Vec<Key> = objects.keys().cloned().collect();
        // Each kind of object as often as the others, however many there are.
        let kinds = ["/wal/", "/packs/", "/backups/", "/index/", "/gaps/", "/leases/", "/expired/", ".parts/", ".history", "json"];
        let kind = *dice.of(&kinds);
        let of_kind: Vec<Key> = keys.iter().filter(|key| key.as_str().contains(kind)).cloned().collect();
        let key = if of_kind.is_empty() { dice.of(&keys) } else { dice.of(&of_kind) }.clone();
        let body = objects[&key].clone();
        let what = match dice.below(14) {
            0 => {
                let bit = dice.below(body.len() * 8);
                objects.insert(key.clone(), changed(&body, |bytes| bytes[bit / 8] ^= 1 << (bit % 8)));
                format!("bit {bit} of {key} flipped")
            }
            1 => {
                let at: Vec<usize> = (0..8).map(|_| dice.below(body.len())).collect();
                let with = dice.next() as u8 | 1;
                objects.insert(key.clone(), changed(&body, |bytes| at.iter().for_each(|at| bytes[*at] ^= with)));
                format!("bytes {at:?} of {key} changed by {with}")
            }
            2 => {
                let to = dice.below(body.len());
                objects.insert(key.clone(), body.slice(..to));
                format!("{key} cut off at {to}")
            }
            3 => {
                objects.insert(key.clone(), Bytes::new());
                format!("{key} emptied")
            }
            4 => {
                let (by, with) = (1 + dice.below(5000), dice.next() as u8);
                objects.insert(key.clone(), changed(&body, |bytes| bytes.resize(bytes.len() + by, with)));
                format!("{key} made {by} longer by {with}")
            }
            5 => {
                let from = dice.below(body.len());
                let to = (from + 1 + dice.below(4096)).min(body.len());
                objects.insert(key.clone(), changed(&body, |bytes| bytes[from..to].fill(0)));
                format!("{from} to {to} of {key} zeroed")
            }
            6 => {
                objects.remove(&key);
                format!("{key} removed")
            }
            7 => {
                let among = if of_kind.len() > 1 && dice.below(4) > 0 { &of_kind } else { &keys };
                let other = dice.of(among).clone();
                let others = objects[&other].clone();
                objects.insert(key.clone(), others);
                objects.insert(other.clone(), body);
                format!("{key} and {other} exchanged")
            }
            8 => {
                let other = dice.of(if of_kind.len() > 1 { &of_kind } else { &keys }).clone();
                let others = objects[&other].clone();
                objects.insert(key.clone(), others);
                format!("{other} copied over {key}")
            }
            9 => {
                // A digit of its name: what is valid is another object's name.
                let text = key.as_str();
                let digits: Vec<usize> = text.char_indices().skip(25).filter(|(_, c)| c.is_ascii_hexdigit()).map(|(at, _)| at).collect();
                let mut renamed = text.to_owned();
                if !digits.is_empty() {
                    let at = *dice.of(&digits);
                    let digit = *dice.of(&["0", "1", "2", "7", "9", "A", "F", "f"]);
                    renamed.replace_range(at..=at, digit);
                }
                let renamed: Key = renamed.parse().unwrap();
                if dice.below(2) == 0 {
                    objects.remove(&key);
                }
                objects.insert(renamed.clone(), body);
                format!("{key} put under {renamed}")
            }
            10 | 11 => edited(&mut dice, origin, &mut objects, &key),
            12 => bomb(&mut dice, &mut objects, &key, &body),
            _ => hostile_key(&mut dice, &mut objects, &key, &body),
        };
        Self { what, objects }
    }
}

fn changed(body: &Bytes, change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut bytes = body.to_vec();
    change(&mut bytes);
    Bytes::from(bytes)
}

/// A record with another value, an object with another description, a manifest with another line and right hashes.
fn edited(dice: &mut Dice, origin: &Origin, objects: &mut Objects, key: &Key) -> String {
    let body = objects[key].clone();
    if let Ok(mut json) = serde_json::from_slice::<Value>(&body) {
        let edit = edit(dice, &mut json);
        let text = if dice.below(2) == 0 { serde_json::to_vec(&json) } else { serde_json::to_vec_pretty(&json) };
        objects.insert(key.clone(), Bytes::from(text.unwrap()));
        return format!("{key}: {edit}");
    }
    if key.as_str().contains("/backups/") && origin.keys.is_none() {
        return manifest(dice, objects, key, &body);
    }
    // The description at the front of a plain object.
    let length = body.get(4..8).and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)).unwrap_or_default();
    match body.get(8..8 + length).and_then(|text| serde_json::from_slice::<Value>(text).ok()) {
        Some(mut description) => {
            let edit = edit(dice, &mut description);
            let text = serde_json::to_vec(&description).unwrap();
            let mut bytes = body[..4].to_vec();
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&text);
            bytes.extend_from_slice(&body[8 + length..]);
            objects.insert(key.clone(), Bytes::from(bytes));
            format!("{key}: description: {edit}")
        }
        None => {
            objects.insert(key.clone(), body.slice(body.len() / 2..));
            format!("{key}: its second half only")
        }
    }
}

/// Puts a hostile value in the place of one, or takes one away.
fn edit(dice: &mut Dice, json: &mut Value) -> String {
    let mut path = String::new();
    loop {
        let place = json.pointer(&path).unwrap();
        let step = match place {
            Value::Object(fields) if !fields.is_empty() => fields.keys().nth(dice.below(fields.len())).unwrap().clone(),
            Value::Array(values) if !values.is_empty() => dice.below(values.len()).to_string(),
            _ => break,
        };
        if place.is_object() && dice.below(8) == 0 {
            let edit = format!("{path}/{step} taken away");
            json.pointer_mut(&path).unwrap().as_object_mut().unwrap().remove(&step);
            return edit;
        }
        path = format!("{path}/{step}");
    }
    let value = match json.pointer(&path).unwrap() {
        // As valid as it was, and another one.
        Value::Number(number) if dice.below(2) == 0 => Value::from(number.as_u64().unwrap_or_default() ^ (1 << dice.below(20))),
        _ => hostile(dice),
    };
    let edit = format!("{path} becomes {}", value.to_string().chars().take(60).collect::<String>());
    *json.pointer_mut(&path).unwrap() = value;
    edit
}

/// Another line in a manifest, with the right hash at its end and in the backup's record: what a careful attacker would write.
fn manifest(dice: &mut Dice, objects: &mut Objects, key: &Key, body: &Bytes) -> String {
    let text = String::from_utf8(zstd::decode_all(&body[..]).unwrap()).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let at = dice.below(lines.len());
    let Ok(mut json) = serde_json::from_str::<Value>(&lines[at]) else { return "no manifest".to_owned() };
    let edit = edit(dice, &mut json);
    // The first key of a line says what it is.
    let first = lines[at].split('"').nth(1).unwrap_or_default().to_owned();
    let mut fields = json.as_object().cloned().unwrap_or_default();
    let mut line = String::from("{");
    if let Some(value) = fields.remove(&first) {
        line.push_str(&format!("\"{first}\":{value}"));
    }
    for (name, value) in fields {
        line.push_str(&format!("{}\"{name}\":{value}", if line.len() > 1 { "," } else { "" }));
    }
    lines[at] = line + "}";
    let last = lines.len() - 1;
    let mut hash = Sha256::new();
    lines[..last].iter().for_each(|line| hash.update(format!("{line}\n")));
    let sum = hex::encode(hash.finalize());
    let record_key: Key = format!("{}/backup.json", key.as_str().rsplit_once('/').unwrap().0).parse().unwrap();
    if at != last
        && let (Ok(mut trailer), Some(record)) = (serde_json::from_str::<Value>(&lines[last]), objects.get(&record_key))
    {
        trailer["sha256"] = Value::from(sum.clone());
        lines[last] = format!("{{\"entries\":{},\"bytes\":{},\"sha256\":\"{sum}\"}}", trailer["entries"], trailer["bytes"]);
        let mut record: Value = serde_json::from_slice(record).unwrap();
        record["manifest_sha256"] = Value::from(sum);
        // It says nothing of itself any more.
        record.as_object_mut().unwrap().remove("sha256");
        objects.insert(record_key, Bytes::from(serde_json::to_vec(&record).unwrap()));
    }
    let text = lines.join("\n") + "\n";
    objects.insert(key.clone(), Bytes::from(zstd::encode_all(text.as_bytes(), 1).unwrap()));
    format!("{key}: line {at}{edit}")
}

/// zstd that becomes four gigabytes, behind a description that asks for it or not.
fn bomb(dice: &mut Dice, objects: &mut Objects, key: &Key, body: &Bytes) -> String {
    // A frame without a content size, window 1 MiB, of blocks that repeat one byte.
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x50];
    let blocks = 32 << 10;
    for block in 0..blocks {
        let header: u32 = u32::from(block + 1 == blocks) | 1 << 1 | (128 << 10) << 3;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(b'\n');
    }
    let nested = dice.below(3) == 0;
    if nested {
        frame = zstd::encode_all(&frame[..], 1).unwrap();
    }
    let length = body.get(4..8).and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)).unwrap_or_default();
    let front = body.get(8..8 + length).and_then(|text| serde_json::from_slice::<Value>(text).ok());
    let mut bytes = Vec::new();
    let mut claims = String::new();
    if let Some(mut description) = front.filter(|_| dice.below(4) > 0) {
        if dice.below(2) == 0 {
            description["length"] = Value::from(4u64 << 30);
            claims = ", which its description claims".to_owned();
        }
        let text = serde_json::to_vec(&description).unwrap();
        bytes.extend_from_slice(&body[..4]);
        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&text);
    }
    bytes.extend_from_slice(&frame);
    objects.insert(key.clone(), Bytes::from(bytes));
    format!("{key} becomes 4 GiB{claims}{}", if nested { ", in another frame" } else { "" })
}

/// An object beside the others that somebody put there.
fn hostile_key(dice: &mut Dice, objects: &mut Objects, key: &Key, body: &Bytes) -> String {
    let (folder, name) = key.as_str().rsplit_once('/').unwrap_or(("main", key.as_str()));
    let root = folder.split('/').take(2).collect::<Vec<_>>().join("/");
    let names = [
        format!("{folder}/{}", "x".repeat(1000 - folder.len())),
        format!("{folder}/{name}.tmp"),
        format!("{folder}/...{name}"),
        format!("{folder}/-rf"),
        format!("{root}/packs/zz/{}", "0".repeat(64)),
        format!("{root}/wal/00000000.history.zst"),
        format!("{root}/wal/FFFFFFFF/FFFFFFFF/FFFFFFFFFFFFFFFFFFFFFFFF.zst"),
        format!("{root}/wal/00000001/FFFFFFFF/00000001FFFFFFFFFFFFFFFF.zst"),
        format!("{root}/wal/00000001/FFFFFFFF/00000001FFFFFFFFFFFFFFFF.parts/FFFFFFFE-FFFFFFFF.FFFFFFFF.zst"),
        format!("{root}/leases/00000001/FFFFFFFF.json"),
        format!("{root}/leases/FFFFFFFF/00000001.json"),
        format!("{root}/expired/FFFFFFFF.json"),
        format!("{root}/expired/FFFFFFFF.end.json"),
        format!("{root}/gaps/00000001-0000000000000000-FFFFFFFFFFFFFFFF.json"),
        format!("{root}/index/00000001/2/0000000000000000-FFFFFFFFFFFFFFFF.zst"),
        format!("{root}/index/FFFFFFFF/blocks/FFFFFFFFFFFFFFFF-0000000000000000.zst"),
        format!("{root}/backups/99991231T235959Z-FFFFFFFFFFFFFFFF/backup.json"),
        format!("{root}/backups/99999999T999999Z-FFFFFFFFFFFFFFFF/begun.json"),
        format!("{root}/backups/99999999T999999Z-FFFFFFFFFFFFFFFF/manifest.4294967295.zst"),
        format!("{root}/names/00000001/FFFFFFFFFFFFFFFF.zst"),
    ];
    let name: Key = dice.of(&names).parse().unwrap();
    // No key is a folder of another.
    if objects.keys().any(|key| key.as_str().starts_with(&format!("{name}/"))) {
        return "nothing".to_owned();
    }
    objects.insert(name.clone(), body.clone());
    format!("{key} put under {} as well", name.as_str().chars().take(120).collect::<String>())
}
