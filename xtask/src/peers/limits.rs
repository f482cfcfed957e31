//! What a figure has to reach, and whether it does.

use super::table::grouped;
use super::works::Participant;
use std::collections::BTreeMap;
use std::fmt;

/// The figures of one work, by the participants' names.
pub(crate) type Values = BTreeMap<String, f64>;

/// What Footlight's figure has to reach: by itself, or as a multiple of a peer's from the same run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
    TimesAtMost(f64, Participant),
    TimesAtLeast(f64, Participant),
}

/// Whether a limit is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// With the figure, or the multiple, that was judged.
    Met(f64),
    Missed(f64),
    /// One of the two was not measured.
    Open,
}

impl Limit {
    /// Whose figure Footlight's is compared with.
    pub(crate) fn peer(self) -> Option<Participant> {
        match self {
            Self::AtMost(_) | Self::AtLeast(_) => None,
            Self::TimesAtMost(_, peer) | Self::TimesAtLeast(_, peer) => Some(peer),
        }
    }

    pub(crate) fn is_upper(self) -> bool {
        matches!(self, Self::AtMost(_) | Self::TimesAtMost(..))
    }

    pub(crate) fn bound(self) -> f64 {
        match self {
            Self::AtMost(bound) | Self::AtLeast(bound) => bound,
            Self::TimesAtMost(bound, _) | Self::TimesAtLeast(bound, _) => bound,
        }
    }

    pub(crate) fn judge(self, values: &Values) -> Verdict {
        let judged = match self.peer() {
            None => values.get(Participant::Footlight.name()).copied(),
            Some(peer) => ratio(values, peer),
        };
        match judged {
            None => Verdict::Open,
            Some(figure) if self.is_upper() && figure <= self.bound() => Verdict::Met(figure),
            Some(figure) if !self.is_upper() && figure >= self.bound() => Verdict::Met(figure),
            Some(figure) => Verdict::Missed(figure),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.is_upper() { '≤' } else { '≥' };
        write!(f, "{sign} {}", grouped(&self.bound().to_string()))?;
        self.peer().map_or(Ok(()), |peer| write!(f, " × {}", peer.name()))
    }
}

impl Verdict {
    /// The word in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Met(_) => "met",
            Self::Missed(_) => "missed",
            Self::Open => "open",
        }
    }
}

/// Footlight's figure divided by another's.
pub(crate) fn ratio(values: &Values, other: Participant) -> Option<f64> {
    let of = |who: Participant| values.get(who.name()).copied();
    of(Participant::Footlight).zip(of(other)).map(|(own, other)| own / other)
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(sorted.get(middle.checked_sub(1)?)?.midpoint(upper))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Participant::{Gloo, Ray};

    fn values(of: &[(&str, f64)]) -> Values {
        of.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[4.0, 1.0, 9.0, 2.0]), Some(3.0));
    }

    #[test]
    fn a_ratio_needs_both() {
        let values = values(&[("footlight", 80.0), ("gloo", 100.0)]);
        assert_eq!(ratio(&values, Gloo), Some(0.8));
        assert_eq!(ratio(&values, Ray), None);
    }

    #[test]
    fn a_limit_is_met_at_its_bound_and_missed_beyond() {
        let values = values(&[("footlight", 80.0), ("gloo", 100.0)]);
        assert_eq!(Limit::AtMost(80.0).judge(&values), Verdict::Met(80.0));
        assert_eq!(Limit::AtMost(79.0).judge(&values), Verdict::Missed(80.0));
        assert_eq!(Limit::AtLeast(80.0).judge(&values), Verdict::Met(80.0));
        assert_eq!(Limit::AtLeast(81.0).judge(&values), Verdict::Missed(80.0));
        assert_eq!(Limit::TimesAtMost(0.8, Gloo).judge(&values), Verdict::Met(0.8));
        assert_eq!(Limit::TimesAtMost(0.7, Gloo).judge(&values), Verdict::Missed(0.8));
        assert_eq!(Limit::TimesAtLeast(0.9, Gloo).judge(&values), Verdict::Missed(0.8));
        assert_eq!(Limit::TimesAtMost(0.3, Ray).judge(&values), Verdict::Open);
        assert_eq!(Limit::AtMost(1.0).judge(&Values::new()), Verdict::Open);
    }

    #[test]
    fn a_limit_reads_as_in_the_issue() {
        assert_eq!(Limit::TimesAtMost(1.3, Gloo).to_string(), "≤ 1.3 × gloo");
        assert_eq!(Limit::AtLeast(400_000.0).to_string(), "≥ 400,000");
    }
}
