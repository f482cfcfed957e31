//! How long something is valid, as people write it.

use std::time::Duration;

/// A text that is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no length of time: give a number with a unit, for example 90s, 30m, 12h, 7d or 1h30m"
)]
pub struct InvalidLifetime(String);

/// Reads a length of time: numbers, each with its unit, `s`, `m`, `h` or `d`.
///
/// # Errors
/// [`InvalidLifetime`] for anything else, for nothing, and for more than 100 years.
pub fn parse_lifetime(text: &str) -> Result<Duration, InvalidLifetime> {
    let invalid = || InvalidLifetime(text.chars().take(40).collect());
    let mut seconds = 0u64;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let (number, unit) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let mut unit = unit.chars();
        let unit_seconds = match unit.next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3_600,
            Some('d') => 86_400,
            _ => return Err(invalid()),
        };
        rest = unit.as_str();
        let more = number.checked_mul(unit_seconds).ok_or_else(invalid)?;
        seconds = seconds.checked_add(more).ok_or_else(invalid)?;
    }
    match seconds {
        1..=3_153_600_000 => Ok(Duration::from_secs(seconds)),
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_as_people_write_them() {
        let seconds = |text| parse_lifetime(text).map(|time| time.as_secs()).ok();
        assert_eq!(seconds("30m"), Some(1_800));
        assert_eq!(seconds("12h"), Some(43_200));
        assert_eq!(seconds("7d"), Some(604_800));
        assert_eq!(seconds("1h30m"), Some(5_400));
        for text in ["", "0s", "12", "h", "-1h", "1.5h", "1w", "30m 2", "99999999999999999999d"] {
            assert_eq!(seconds(text), None, "{text}");
        }
        assert!(parse_lifetime("soon").unwrap_err().to_string().contains("30m"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,60}", digits in "[0-9smhd]{0,60}") {
            let _ = (parse_lifetime(&text), parse_lifetime(&digits));
        }
    }
}
