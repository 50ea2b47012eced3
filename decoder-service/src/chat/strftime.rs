//! Dates as chat templates write them.

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
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

/// A second of the Gregorian calendar, in UTC.
struct Date {
    year: u64,
    /// From 0.
    month: usize,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// From Sunday.
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Date {
    fn at(seconds: u64) -> Self {
        let mut days = seconds / 86_400;
        // 1970 began on a Thursday.
        let weekday = ((days + 4) % 7) as usize;
        let mut year = 1970;
        while days >= days_in_year(year) {
            days -= days_in_year(year);
            year += 1;
        }
        let day_of_year = days + 1;
        let mut month = 0;
        while days >= days_in_month(year, month) {
            days -= days_in_month(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: days + 1,
            day_of_year,
            weekday,
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }

    fn hour12(&self) -> u64 {
        (self.hour + 11) % 12 + 1
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn days_in_year(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

fn days_in_month(year: u64, month: usize) -> u64 {
    match month {
        1 => 28 + u64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

/// C's `strftime` in the C locale and UTC, `seconds` after 1970 began. `%-d` and the like leave
/// padding away; what is no conversion stays as it is.
pub(super) fn strftime(format: &str, seconds: u64) -> String {
    let date = Date::at(seconds.min(u64::from(u32::MAX) * 60));
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut rest = chars.clone();
        let unpadded = rest.next() == Some('-');
        if unpadded {
            chars.next();
        }
        match chars.next() {
            Some(conversion) => write(&date, conversion, unpadded, &mut out),
            None => out.push('%'),
        }
    }
    out
}

fn write(date: &Date, conversion: char, unpadded: bool, out: &mut String) {
    let number = |value: u64, width: usize| match unpadded {
        true => value.to_string(),
        false => format!("{value:0width$}"),
    };
    let (weekday, month) = (DAYS[date.weekday], MONTHS[date.month]);
    let text = match conversion {
        'Y' => number(date.year, 4),
        'y' => number(date.year % 100, 2),
        'm' => number(date.month as u64 + 1, 2),
        'd' => number(date.day, 2),
        'e' => format!("{:>2}", date.day),
        'j' => number(date.day_of_year, 3),
        'H' => number(date.hour, 2),
        'I' => number(date.hour12(), 2),
        'M' => number(date.minute, 2),
        'S' => number(date.second, 2),
        'p' => if date.hour < 12 { "AM" } else { "PM" }.to_owned(),
        'A' => weekday.to_owned(),
        'a' => weekday[..3].to_owned(),
        'B' => month.to_owned(),
        'b' | 'h' => month[..3].to_owned(),
        'w' => date.weekday.to_string(),
        'Z' => "UTC".to_owned(),
        'z' => "+0000".to_owned(),
        'F' => strftime_of(date, "Ymd", '-'),
        'T' => strftime_of(date, "HMS", ':'),
        '%' => "%".to_owned(),
        other => format!("%{other}"),
    };
    out.push_str(&text);
}

fn strftime_of(date: &Date, conversions: &str, between: char) -> String {
    let mut out = String::new();
    for (i, conversion) in conversions.chars().enumerate() {
        if i > 0 {
            out.push(between);
        }
        write(date, conversion, false, &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::strftime;

    /// Expected values by `date -u -d @SECONDS +FORMAT`.
    #[test]
    fn dates() {
        for (seconds, format, expected) in [
            (0, "%Y-%m-%d %H:%M:%S %A", "1970-01-01 00:00:00 Thursday"),
            (951_782_400, "%d %b %Y, day %j", "29 Feb 2000, day 060"),
            (
                1_709_210_096,
                "%-d %B %y %-I:%M %p",
                "29 February 24 12:34 PM",
            ),
            (1_735_689_599, "%F %T %a", "2024-12-31 23:59:59 Tue"),
            (1_735_689_600, "%F%%%e|%Q", "2025-01-01% 1|%Q"),
            (1_735_689_600, "%I %p %", "12 AM %"),
        ] {
            assert_eq!(strftime(format, seconds), expected, "{format}");
        }
    }
}
