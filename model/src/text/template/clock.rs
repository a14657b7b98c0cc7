//! `strftime_now`: a moment in, the text that Python's `datetime.strftime` gives for it out (UTC, C locale).

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Formats `now`, in UTC. A directive that is not known stays as it is written.
pub fn strftime(format: &str, now: SystemTime) -> String {
    let moment = Moment::new(now);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            // glibc's `-` drops the padding.
            Some('-') => match chars.next() {
                Some(directive) => out.push_str(trim_padding(&moment.field(directive))),
                None => out.push_str("%-"),
            },
            Some(directive) => out.push_str(&moment.field(directive)),
            None => out.push('%'),
        }
    }
    out
}

fn trim_padding(field: &str) -> &str {
    let trimmed = field.trim_start_matches(['0', ' ']);
    if trimmed.is_empty() && !field.is_empty() { "0" } else { trimmed }
}

/// A civil date and time.
struct Moment {
    year: i64,
    month: usize,
    day: i64,
    day_of_year: i64,
    weekday: usize,
    second_of_day: i64,
    microsecond: u32,
}

impl Moment {
    /// Days to civil date after H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    fn new(now: SystemTime) -> Moment {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs() as i64;
        let days = seconds.div_euclid(86_400);
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_from_march + 2) / 153;
        let day = day_from_march - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
        Moment {
            year,
            month: month as usize,
            day,
            day_of_year: before + day + i64::from(leap && month > 2),
            weekday: (days + 4).rem_euclid(7) as usize,
            second_of_day: seconds.rem_euclid(86_400),
            microsecond: since.subsec_micros(),
        }
    }

    fn field(&self, directive: char) -> String {
        let (hour, minute, second) =
            (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let hour12 = (hour + 11) % 12 + 1;
        match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'H' => format!("{hour:02}"),
            'I' => format!("{hour12:02}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'f' => format!("{:06}", self.microsecond),
            'p' => (if hour < 12 { "AM" } else { "PM" }).into(),
            'A' => DAYS[self.weekday].into(),
            'a' => DAYS[self.weekday][..3].into(),
            'B' => MONTHS[self.month - 1].into(),
            'b' | 'h' => MONTHS[self.month - 1][..3].into(),
            'w' => self.weekday.to_string(),
            'u' => ((self.weekday + 6) % 7 + 1).to_string(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' | 'X' => format!("{hour:02}:{minute:02}:{second:02}"),
            'R' => format!("{hour:02}:{minute:02}"),
            'D' | 'x' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year % 100),
            'n' => "\n".into(),
            't' => "\t".into(),
            'z' | 'Z' => String::new(),
            '%' => "%".into(),
            other => format!("%{other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn fields_are_those_of_python() {
        // python3 -c "import datetime as d; print(d.datetime.fromtimestamp(T, d.UTC).strftime(F))"
        let table = [
            (0, "%Y-%m-%d %H:%M:%S %A %j", "1970-01-01 00:00:00 Thursday 001"),
            (951_782_400, "%d %b %Y %a %j", "29 Feb 2000 Tue 060"),
            (1_735_689_599, "%d %B %Y %I:%M %p %j %y", "31 December 2024 11:59 PM 366 24"),
            (1_753_000_000, "%-d/%-m %e|%F %T %D %u %w %%", "20/7 20|2025-07-20 08:26:40 07/20/25 7 0 %"),
        ];
        for (seconds, format, expected) in table {
            assert_eq!(strftime(format, UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
