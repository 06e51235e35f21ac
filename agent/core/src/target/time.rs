//! Times as an operator writes them. Nothing is guessed: a time that could be read in two ways is refused, and told how to write it.

use chrono::{NaiveDate, TimeDelta};

use crate::time::PgTimestamp;

/// A time that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Not the expected form at all.
    #[error("{text:?} is not a time: write it as 2026-11-20T14:30:00Z or 2026-11-20 14:30:00.123456+01:00")]
    Malformed {
        /// What was given.
        text: String,
    },
    /// No zone.
    #[error("{text:?} has no time zone: add the offset from UTC, as in {text}+01:00, or Z for UTC")]
    NoZone {
        /// What was given.
        text: String,
    },
    /// A zone by name or abbreviation.
    #[error("{zone:?} is not an offset: zone names and abbreviations can be read in more than one way; write {stem}{hint}")]
    ZoneName {
        /// The time without its zone.
        stem: String,
        /// The zone.
        zone: String,
        /// What to write in its place.
        hint: &'static str,
    },
    /// An offset no zone has.
    #[error("{zone:?} is not an offset from UTC: write +HH:MM or -HH:MM up to 15:59, or Z")]
    BadOffset {
        /// The offset.
        zone: String,
    },
    /// No such day.
    #[error("{text:?} is not a day of the calendar: write a year from 0001 to 9999 in four digits, a month and a day that exist")]
    NoSuchDay {
        /// The date.
        text: String,
    },
    /// Midnight at the end of a day.
    #[error("24:00 is not taken: write 00:00:00 of the following day, {next}")]
    EndOfDay {
        /// The following day.
        next: String,
    },
    /// A leap second.
    #[error("second 60 is not taken, since PostgreSQL's clock has none: write second 59 with a fraction, or 00 of the following minute")]
    LeapSecond,
    /// No such time of day.
    #[error("{text:?} is not a time of day: write 00:00:00 to 23:59:59")]
    NoSuchTime {
        /// The time of day.
        text: String,
    },
    /// More digits than PostgreSQL keeps.
    #[error("{text:?} is finer than a microsecond, which PostgreSQL cannot compare: write at most six digits after the point")]
    TooFine {
        /// The fraction.
        text: String,
    },
}

/// Reads a moment with a zone: RFC 3339, or PostgreSQL's `2026-11-20 14:30:00.123456+01`.
pub fn parse_time(text: &str) -> Result<PgTimestamp, TimeError> {
    let malformed = || TimeError::Malformed { text: text.chars().take(80).collect() };
    let (date, rest) = text.split_once([' ', 'T', 't']).ok_or_else(malformed)?;
    let clock_len = rest.find(|c: char| !(c.is_ascii_digit() || c == ':' || c == '.')).unwrap_or(rest.len());
    let (clock, zone) = rest.split_at(clock_len);
    let stem = text.get(..text.len() - zone.len()).ok_or_else(malformed)?;
    let zone = zone.strip_prefix(' ').unwrap_or(zone);

    let day = parse_day(date).ok_or_else(malformed)?;
    let (clock, fraction) = clock.split_once('.').map_or((clock, None), |(clock, fraction)| (clock, Some(fraction)));
    let [hour, minute, second] = numbers::<3>(clock, ':', [2, 2, 2]).ok_or_else(malformed)?;
    let micros = match fraction {
        None => 0,
        Some(digits) if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) => return Err(malformed()),
        Some(digits) if digits.len() > 6 => return Err(TimeError::TooFine { text: digits.chars().take(20).collect() }),
        Some(digits) => format!("{digits:0<6}").parse::<i64>().map_err(|_| malformed())?,
    };
    let day = day.map_err(|()| TimeError::NoSuchDay { text: date.to_owned() })?;
    match (hour, minute, second) {
        (24, 0, 0) => {
            let next = day.succ_opt().unwrap_or(day);
            return Err(TimeError::EndOfDay { next: next.format("%Y-%m-%d").to_string() });
        }
        (0..=23, 0..=59, 0..=59) => {}
        (0..=23, 0..=59, 60) => return Err(TimeError::LeapSecond),
        _ => return Err(TimeError::NoSuchTime { text: clock.to_owned() }),
    }
    let offset = parse_offset(stem, zone)?;
    let local = day.and_hms_opt(hour, minute, second).ok_or_else(malformed)?;
    let utc = local.checked_sub_signed(TimeDelta::seconds(offset)).ok_or_else(malformed)?.and_utc();
    Ok(PgTimestamp::from_micros(PgTimestamp::from_utc(utc).micros() + micros))
}

/// The moment as PostgreSQL reads it in any locale and zone: `2026-11-20 13:30:00.123456+00`. (`Z` is refused by its settings.)
/// `None` for moments beyond the years people write.
pub fn print_time(time: PgTimestamp) -> Option<String> {
    time.to_utc().map(|time| time.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string())
}

/// `None` if it is not a date, `Err` if there is no such day.
fn parse_day(text: &str) -> Option<Result<NaiveDate, ()>> {
    let (year, _) = text.split_once('-')?;
    if year.len() > 4 && year.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Err(()));
    }
    let [year, month, day] = numbers::<3>(text, '-', [4, 2, 2])?;
    let date = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, day);
    Some(date.filter(|_| year > 0).ok_or(()))
}

/// Numbers of exactly the given widths.
fn numbers<const N: usize>(text: &str, separator: char, widths: [usize; N]) -> Option<[u32; N]> {
    let mut fields = text.split(separator);
    let mut values = [0; N];
    for (value, width) in values.iter_mut().zip(widths) {
        let field = fields.next().filter(|field| field.len() == width && field.bytes().all(|b| b.is_ascii_digit()))?;
        *value = field.parse().ok()?;
    }
    fields.next().is_none().then_some(values)
}

/// Seconds east of UTC.
fn parse_offset(stem: &str, zone: &str) -> Result<i64, TimeError> {
    let bad = || TimeError::BadOffset { zone: zone.chars().take(20).collect() };
    let (sign, digits) = match zone.as_bytes() {
        [] => return Err(TimeError::NoZone { text: stem.to_owned() }),
        [b'Z' | b'z'] => return Ok(0),
        [b'+', ..] => (1, &zone[1..]),
        [b'-', ..] => (-1, &zone[1..]),
        _ => {
            let utc = ["UTC", "GMT"].iter().any(|name| zone.eq_ignore_ascii_case(name));
            let hint = if utc { "Z" } else { "+HH:MM with the offset that was in force then" };
            return Err(TimeError::ZoneName { stem: stem.to_owned(), zone: zone.chars().take(40).collect(), hint });
        }
    };
    let (hours, minutes) = match (numbers::<2>(digits, ':', [2, 2]), numbers::<1>(digits, ':', [2]), numbers::<1>(digits, ':', [4])) {
        (Some([hours, minutes]), _, _) => (hours, minutes),
        (_, Some([hours]), _) => (hours, 0),
        (_, _, Some([both])) => (both / 100, both % 100),
        _ => return Err(bad()),
    };
    if hours > 15 || minutes > 59 {
        return Err(bad());
    }
    Ok(sign * i64::from(hours * 3600 + minutes * 60))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> String {
        parse_time(text).map(|time| time.to_string()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn one_moment_has_many_spellings() {
        for text in [
            "2026-11-20T14:30:00Z",
            "2026-11-20t14:30:00z",
            "2026-11-20 14:30:00+00",
            "2026-11-20 14:30:00 +00",
            "2026-11-20 15:30:00.000000+01:00",
            "2026-11-20 20:15:00.0+05:45",
            "2026-11-20T20:15:00+0545",
            "2026-11-20 11:00:00-03:30",
            "2026-11-21T00:30:00+10",
        ] {
            assert_eq!(read(text), "2026-11-20T14:30:00.000000Z", "{text}");
        }
        assert_eq!(read("1999-12-31 23:59:59.9+00"), "1999-12-31T23:59:59.900000Z");
        assert_eq!(read("2028-02-29 00:00:00.000001Z"), "2028-02-29T00:00:00.000001Z");
        assert_eq!(read("0001-01-01 00:00:00+15:59"), "0000-12-31T08:01:00.000000Z");
    }

    #[test]
    fn every_refusal_says_what_to_write() {
        let cases = [
            ("", "write it as"),
            ("yesterday", "write it as"),
            ("2026-11-20", "write it as"),
            ("2026-11-20 14:30Z", "write it as"),
            ("2026-11-20 14:30:00.Z", "write it as"),
            ("26-11-20 14:30:00Z", "write it as"),
            ("2026-1-2 14:30:00Z", "write it as"),
            ("2026-11-20 14:30:00", "or Z for UTC"),
            ("2026-11-20 14:30:00 ", "or Z for UTC"),
            ("2026-11-20 14:30:00 EEST", "offset that was in force"),
            ("2026-11-20 14:30:00 Europe/Kyiv", "offset that was in force"),
            ("2026-11-20 14:30:00 UTC", "write 2026-11-20 14:30:00Z"),
            ("2026-11-20 14:30:00GMT", "write 2026-11-20 14:30:00Z"),
            ("2026-11-20 14:30:00+16", "up to 15:59"),
            ("2026-11-20 14:30:00+01:60", "up to 15:59"),
            ("2026-11-20 14:30:00+1", "up to 15:59"),
            ("2026-11-20 14:30:00+01:00:00", "up to 15:59"),
            ("2026-11-20 14:30:00+01x", "up to 15:59"),
            ("2026-11-20 24:00:00Z", "2026-11-21"),
            ("2026-11-20 24:00:01Z", "23:59:59"),
            ("2026-11-20 14:60:00Z", "23:59:59"),
            ("2026-11-20 14:59:60Z", "second 59"),
            ("2026-02-29 14:30:00Z", "exist"),
            ("2026-13-01 14:30:00Z", "exist"),
            ("0000-01-01 14:30:00Z", "0001"),
            ("10000-01-01 14:30:00Z", "four digits"),
            ("2026-11-20 14:30:00.1234567Z", "six digits"),
            ("2026-11-20 14:30:00é", "offset that was in force"),
        ];
        for (text, says) in cases {
            let error = parse_time(text).expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(micros in -60_000_000_000_000_000i64..250_000_000_000_000_000) {
            let time = PgTimestamp::from_micros(micros);
            prop_assert_eq!(parse_time(&time.to_string()), Ok(time));
            prop_assert_eq!(parse_time(&print_time(time).expect("in range")), Ok(time));
        }

        #[test]
        fn reading_never_panics(text in "[0-9TZ:. +é-]{0,40}") {
            let _ = parse_time(&text);
        }
    }
}
