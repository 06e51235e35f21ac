//! The five fields of cron: on which days, at which minutes. Of zones, seconds and clocks it knows nothing.
//!
//! As cron has them: `*`, numbers, ranges, lists, steps (`*/15`, `8-18/2`), names of months and weekdays, Sunday as 0 and 7, and `@daily`
//! and the like. Where both days are said (neither begins with `*`) one of them is enough. What cron would accept and never do is an error.

use std::fmt;
use std::str::FromStr;

use chrono::{Datelike, Days, NaiveDate, NaiveDateTime, NaiveTime};

/// All that can happen to a calendar happens within as many days: 29 February falls on each weekday once in 28 years, and in 40 where a
/// century leaves it out.
const HORIZON_DAYS: usize = 41 * 366;

/// A cron expression.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// One of the two days is enough.
    either_day: bool,
    text: String,
}

/// An expression that is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CronError {
    /// Not five fields.
    #[error("{found} fields where there must be 5: minute, hour, day of the month, month, day of the week, such as \"0 3 * * *\"")]
    Fields {
        /// How many there are.
        found: usize,
    },
    /// A word with `@` that means nothing here.
    #[error("{0:?} is not known: use @hourly, @daily (or @midnight), @weekly, @monthly or @yearly (or @annually)")]
    Word(String),
    /// A part of a field that is not right.
    #[error("{part:?} is no {field}: {reason}")]
    Part {
        /// The field's name.
        field: &'static str,
        /// As it is written.
        part: String,
        /// What is wrong.
        reason: String,
    },
    /// It names days that no year has.
    #[error("it can never fire: no year has such a day")]
    Never,
}

/// A field: its name, the lowest and highest number, names of the numbers from the lowest on.
struct Field {
    name: &'static str,
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MINUTE: Field = Field { name: "minute", low: 0, high: 59, names: &[] };
const HOUR: Field = Field { name: "hour", low: 0, high: 23, names: &[] };
const DAY: Field = Field { name: "day of the month", low: 1, high: 31, names: &[] };
const MONTH: Field =
    Field { name: "month", low: 1, high: 12, names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"] };
const WEEKDAY: Field = Field { name: "day of the week", low: 0, high: 7, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Field {
    /// The numbers of a field as bits.
    fn parse(&self, text: &str) -> Result<u64, CronError> {
        text.split(',').try_fold(0, |bits, part| Ok(bits | self.part(part).map_err(|reason| self.wrong(part, reason))?))
    }

    fn wrong(&self, part: &str, reason: String) -> CronError {
        CronError::Part { field: self.name, part: part.into(), reason }
    }

    fn part(&self, part: &str) -> Result<u64, String> {
        let (range, step) = match part.split_once('/') {
            None => (part, None),
            Some((range, step)) => match digits(step) {
                Some(step @ 1..) if step <= self.high => (range, Some(step)),
                _ => return Err(format!("the step behind / must be from 1 to {}", self.high)),
            },
        };
        let (low, high) = match (range, range.split_once('-')) {
            ("*", _) => (self.low, self.high),
            (_, Some((low, high))) => (self.number(low)?, self.number(high)?),
            (only, None) if step.is_none() => {
                let number = self.number(only)?;
                (number, number)
            }
            (from, None) => return Err(format!("a step goes with * or a range: write {from}-{}/{}", self.high, step.unwrap_or(1))),
        };
        if low > high {
            return Err("a range goes upward: write what goes beyond the end as a list of two".into());
        }
        Ok((low..=high).step_by(step.unwrap_or(1) as usize).fold(0, |bits, number| bits | 1 << number))
    }

    fn number(&self, text: &str) -> Result<u32, String> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text)).map(|place| self.low + place as u32);
        let names = || self.names.first().zip(self.names.last()).map_or(String::new(), |(first, last)| format!(", or {first} to {last}"));
        named
            .or_else(|| digits(text))
            .filter(|number| (self.low..=self.high).contains(number))
            .ok_or_else(|| format!("it has numbers from {} to {}{}", self.low, self.high, names()))
    }
}

/// A number without a sign.
fn digits(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl FromStr for Cron {
    type Err = CronError;

    fn from_str(text: &str) -> Result<Self, CronError> {
        let written = text.trim();
        let meant = match written.to_ascii_lowercase().as_str() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            word if word.starts_with('@') => return Err(CronError::Word(written.into())),
            _ => written,
        };
        let fields: Vec<_> = meant.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(CronError::Fields { found: fields.len() });
        };
        let weekdays = WEEKDAY.parse(weekday)?;
        let cron = Self {
            minutes: MINUTE.parse(minute)?,
            hours: HOUR.parse(hour)?,
            days: DAY.parse(day)?,
            months: MONTH.parse(month)?,
            // Sunday is 7 too.
            weekdays: (weekdays | weekdays >> 7) & 0x7F,
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
            text: fields.join(" "),
        };
        let some_day = NaiveDate::from_ymd_opt(2000, 1, 1).unwrap_or_default();
        let fires = some_day.iter_days().take(HORIZON_DAYS).any(|date| cron.fires_on(date));
        if fires { Ok(cron) } else { Err(CronError::Never) }
    }
}

impl fmt::Display for Cron {
    /// Its five fields, whatever it was written as.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn has(bits: u64, number: u32) -> bool {
    bits >> number & 1 == 1
}

impl Cron {
    /// Whether there is a time for it on this day.
    pub fn fires_on(&self, date: NaiveDate) -> bool {
        let (day, weekday) = (has(self.days, date.day()), has(self.weekdays, date.weekday().num_days_from_sunday()));
        has(self.months, date.month()) && if self.either_day { day || weekday } else { day && weekday }
    }

    /// Whether it means this minute.
    pub fn fires_at(&self, local: NaiveDateTime) -> bool {
        use chrono::Timelike;
        self.fires_on(local.date()) && has(self.hours, local.hour()) && has(self.minutes, local.minute()) && local.second() == 0
    }

    /// The times it means behind `local`, in their order.
    pub(super) fn times_behind(&self, local: NaiveDateTime) -> impl Iterator<Item = NaiveDateTime> {
        let days = local.date().iter_days().take(HORIZON_DAYS).filter(|date| self.fires_on(*date));
        days.flat_map(|date| self.times().map(move |time| date.and_time(time))).skip_while(move |time| *time <= local)
    }

    /// The times it means up to `local`, the last one first.
    pub(super) fn times_until(&self, local: NaiveDateTime) -> impl Iterator<Item = NaiveDateTime> {
        let back = std::iter::successors(Some(local.date()), |date| date.checked_sub_days(Days::new(1)));
        let days = back.take(HORIZON_DAYS).filter(|date| self.fires_on(*date));
        days.flat_map(|date| self.times().rev().map(move |time| date.and_time(time))).skip_while(move |time| *time > local)
    }

    /// Its times on any day it fires on.
    fn times(&self) -> impl DoubleEndedIterator<Item = NaiveTime> + use<> {
        let (hours, minutes) = (self.hours, self.minutes);
        let of_hour = move |hour| (0..60).filter(move |minute| has(minutes, *minute)).map(move |minute| (hour, minute));
        (0..24)
            .filter(move |hour| has(hours, *hour))
            .flat_map(of_hour)
            .filter_map(|(hour, minute)| NaiveTime::from_hms_opt(hour, minute, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> NaiveDateTime {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap()
    }

    #[test]
    fn expressions_mean_what_cron_means() {
        // 2026-11-22 is a Sunday.
        for (text, yes, no) in [
            ("0 3 * * *", "2026-11-22 03:00", "2026-11-22 03:01"),
            ("*/15 8-18/2 * * mon-fri", "2026-11-23 10:45", "2026-11-23 09:45"),
            ("5,35-40/5 * * * *", "2026-11-22 00:40", "2026-11-22 00:36"),
            ("0 0 * * 7", "2026-11-22 00:00", "2026-11-23 00:00"),
            ("0 0 * * 5-7", "2026-11-22 00:00", "2026-11-23 00:00"),
            ("0 0 * JAN,nov Sun", "2026-11-22 00:00", "2026-10-25 00:00"),
            ("0 0 1 * sun", "2026-11-22 00:00", "2026-11-23 00:00"),
            ("0 0 1 * sun", "2026-12-01 00:00", "2026-12-02 00:00"),
            ("0 0 */2 * sun", "2026-11-15 00:00", "2026-11-22 00:00"),
            ("@weekly", "2026-11-22 00:00", "2026-11-21 00:00"),
            ("@Hourly", "2026-11-22 07:00", "2026-11-22 07:30"),
            ("0 0 29 2 *", "2028-02-29 00:00", "2027-02-28 00:00"),
            ("0 0 31 2,3 *", "2027-03-31 00:00", "2027-03-03 00:00"),
        ] {
            let cron: Cron = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(cron.fires_at(at(yes)), "{text} at {yes}");
            assert!(!cron.fires_at(at(no)), "{text} at {no}");
        }
        assert_eq!("@daily".parse::<Cron>().unwrap().to_string(), "0 0 * * *");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "0 fields"),
            ("0 3 * *", "4 fields"),
            ("0 0 3 * * *", "6 fields"),
            ("60 * * * *", "\"60\" is no minute: it has numbers from 0 to 59"),
            ("* 24 * * *", "no hour"),
            ("* * 0 * *", "no day of the month"),
            ("* * * 13 *", "or jan to dec"),
            ("* * * * 8", "or sun to sat"),
            ("* * * * fri-mon", "goes upward"),
            ("*/0 * * * *", "from 1 to 59"),
            ("5/15 * * * *", "write 5-59/15"),
            ("1,,2 * * * *", "\"\" is no minute"),
            ("+5 * * * *", "no minute"),
            ("* * L * *", "no day of the month"),
            ("@reboot", "@hourly"),
            ("0 0 31 2 *", "never fire"),
            ("0 0 31 4,6,9,11 *", "never fire"),
            ("0 0 30 feb */2", "never fire"),
        ] {
            let error = text.parse::<Cron>().expect_err(text).to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
