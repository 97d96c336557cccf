//! The sets of extensions over which a negative test is driven: speed never weakens a check.

use echelon_wire::frame::Features;

use crate::remote::OFFERED;

/// None, each extension that parents offer with what it needs, and all.
#[must_use]
pub fn configurations() -> Vec<Features> {
    let all = Features::from_names(OFFERED);
    let alone = singles(all).map(|feature| with_needs(feature, all));
    std::iter::once(Features::NONE)
        .chain(alone)
        .chain(std::iter::once(all))
        .collect()
}

fn singles(set: Features) -> impl Iterator<Item = Features> {
    let single = |bit| Features::from_bits(1_u64 << bit);
    (0..u64::BITS)
        .map(single)
        .filter(move |feature| set.contains(*feature))
}

/// The smallest usable set with it.
fn with_needs(feature: Features, all: Features) -> Features {
    singles(all).fold(all, |set, other| {
        let fewer = Features::from_bits(set.bits() & !other.bits()).usable();
        if fewer.contains(feature) {
            fewer
        } else {
            set
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_with_what_it_needs_and_no_more() {
        let sets = configurations();
        assert_eq!(sets.len(), OFFERED.len() + 2);
        assert!(sets.iter().all(|set| set.usable() == *set));
        let conditions = Features::CONDITIONS
            .union(Features::PIPELINING)
            .union(Features::TIMED_COMPLETION);
        for expected in [conditions, Features::FLOAT64, Features::NONE] {
            assert!(sets.contains(&expected), "{:?}", expected.names());
        }
        assert_eq!(sets.last().unwrap().names().len(), OFFERED.len());
    }
}
