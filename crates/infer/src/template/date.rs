//! A date as Python's `strftime` prints it, as far as templates use it.

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
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const SECS_PER_DAY: u64 = 86_400;
/// 1970-01-01 was a Thursday.
const EPOCH_WEEKDAY: u64 = 3;

/// `format` with its `%` codes filled in for a moment in UTC; unknown codes stay as they are.
pub(super) fn strftime(format: &str, secs: u64) -> String {
    let days = secs / SECS_PER_DAY;
    let (year, month, day) = civil(days);
    let second_of_day = secs % SECS_PER_DAY;
    let hour = second_of_day / 3600;
    let month_name = pick(&MONTHS, month - 1);
    let weekday = pick(&WEEKDAYS, (days + EPOCH_WEEKDAY) % 7);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(short(month_name)),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(short(weekday)),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('I') => out.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('M') => out.push_str(&format!("{:02}", second_of_day / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", second_of_day % 60)),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

fn pick(names: &[&'static str], index: u64) -> &'static str {
    usize::try_from(index).ok().and_then(|index| names.get(index)).copied().unwrap_or("")
}

/// The first three letters.
fn short(name: &str) -> &str {
    name.get(..3).unwrap_or(name)
}

/// Year, month (1 to 12) and day (1 to 31) of a day counted from 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that the leap day is a year's last. 719,468 days lie between.
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March have 31, 30, 31, 30, 31 days, and again: 153 in five.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let all = "%Y-%m-%d %a %A %b %B %y %H:%M:%S %I%p %% %q %";
        let lines = [0, 951_782_400, 1_709_251_199, 4_102_444_799].map(|secs| strftime(all, secs) + "\n").concat();
        // Checked against `date -u -d @SECS`.
        expect_test::expect![[r#"
            1970-01-01 Thu Thursday Jan January 70 00:00:00 12AM % %q %
            2000-02-29 Tue Tuesday Feb February 00 00:00:00 12AM % %q %
            2024-02-29 Thu Thursday Feb February 24 23:59:59 11PM % %q %
            2099-12-31 Thu Thursday Dec December 99 23:59:59 11PM % %q %
        "#]]
        .assert_eq(&lines);
    }
}
