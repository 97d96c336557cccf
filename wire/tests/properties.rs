//! Properties of every message, on random valid messages and on random bytes.

mod common;

use common::samples::{any_sample, Sample};
use common::{recode, KINDS};
use echelon_wire::bootstrap::Manifest;
use echelon_wire::callable::is_identifier;
use echelon_wire::{Hashid, ImportTarget};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, Index};

/// Decodes what may be wrong. It may be refused, it may not panic, and what is accepted has a canonical form: encoded
/// again it means the same and encodes to itself.
fn survives(kind: &str, bytes: &[u8]) {
    if let Ok(first) = recode(kind, bytes) {
        let second = recode(kind, &first.bytes).expect("our own encoding");
        assert_eq!(first.fields, second.fields, "{kind}");
        assert_eq!(first.bytes, second.bytes, "{kind}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// encode, decode, encode: same fields, same bytes.
    #[test]
    fn r_072_messages_round_trip(sample in any_sample()) {
        let Sample { kind, fields, bytes } = sample;
        let recoded = recode(kind, &bytes).expect("a valid message");
        prop_assert_eq!(recoded.fields, fields);
        prop_assert_eq!(recoded.bytes, bytes);
    }

    /// one wrong byte anywhere.
    #[test]
    fn r_068_one_changed_byte_is_survived(sample in any_sample(), at in any::<Index>(), value in any::<u8>()) {
        let Sample { kind, mut bytes, .. } = sample;
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        survives(kind, &bytes);
    }

    /// whatever a receiver would not notice is 0, so that memory which was never written cannot travel in it.
    #[test]
    fn r_075_bytes_without_a_meaning_are_zero(sample in any_sample(), places in vec((any::<Index>(), 1..=u8::MAX), 16)) {
        let Sample { kind, fields, bytes } = sample;
        for (at, flip) in places.into_iter().filter(|_| !bytes.is_empty()) {
            let at = at.index(bytes.len());
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            let unnoticed = recode(kind, &changed).is_ok_and(|other| other.fields == fields);
            prop_assert!(!unnoticed || bytes[at] == 0, "{kind}: byte {at} is {}", bytes[at]);
        }
    }

    /// a cut anywhere; only data that runs to the end of its message can be cut unnoticed.
    #[test]
    fn r_067_a_cut_is_refused(sample in any_sample(), at in any::<Index>()) {
        let Sample { kind, bytes, .. } = sample;
        if !bytes.is_empty() {
            let cut = &bytes[..at.index(bytes.len())];
            survives(kind, cut);
            // COPY_TO_REMOTE's data has no length of its own; CopyTo::check_size compares it.
            let open_ended = kind == "copy_to" && cut.len() >= 36;
            prop_assert!(open_ended || recode(kind, cut).is_err());
        }
    }

    /// bytes after the end.
    #[test]
    fn r_068_bytes_after_the_end_are_refused(sample in any_sample(), more in vec(any::<u8>(), 1..9)) {
        let Sample { kind, mut bytes, .. } = sample;
        bytes.extend(more);
        prop_assert!(kind == "copy_to" || recode(kind, &bytes).is_err());
    }

    /// any bytes as any kind, and a valid message of one kind as another.
    #[test]
    fn r_067_any_bytes_are_survived(kind in select(KINDS.to_vec()), bytes in vec(any::<u8>(), 0..200)) {
        survives(kind, &bytes);
    }

    #[test]
    fn r_067_messages_of_another_kind_are_survived(kind in select(KINDS.to_vec()), sample in any_sample()) {
        survives(kind, &sample.bytes);
    }

    /// bytes that are mostly small numbers, so that counts and codes are often plausible.
    #[test]
    fn r_067_plausible_bytes_are_survived(
        kind in select(KINDS.to_vec()),
        bytes in vec(prop_oneof![8 => Just(0_u8), 3 => 1..4_u8, 1 => any::<u8>()], 0..400),
    ) {
        survives(kind, &bytes);
    }

    /// what is accepted as a target consists of identifiers and shows itself.
    #[test]
    fn r_103_targets_are_identifiers(text in "[a-zA-Z_0-9.:<> \\t\\x00é٣ªⅷ]{0,24}") {
        if let Ok(target) = ImportTarget::parse(&text) {
            let trimmed = text.trim_matches([' ', '\t', '\r', '\n']);
            prop_assert_eq!(target.to_string(), trimmed);
            prop_assert!(target.module().split('.').all(is_identifier));
            prop_assert!(target.qualname().split('.').all(is_identifier));
            prop_assert_eq!(ImportTarget::parse(&target.to_string()), Ok(target));
        }
    }

    #[test]
    fn r_103_any_text_is_survived(text in any::<String>()) {
        let _ = ImportTarget::parse(&text);
        let _ = Hashid::parse(&text);
        let _ = Hashid::parse_manifest(&text);
    }

    /// A hashid is accepted exactly in the form that it is shown in.
    #[test]
    fn hashids_are_strict(text in "(sha256:)?[0-9a-fA-F ]{60,66}") {
        match Hashid::parse(&text) {
            Ok(hashid) => prop_assert_eq!(hashid.to_string(), text),
            Err(_) => {
                let strict = text.strip_prefix("sha256:").is_some_and(|hex| {
                    hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                });
                prop_assert!(!strict);
            }
        }
    }

    #[test]
    fn any_json_is_survived_as_a_manifest(bytes in vec(any::<u8>(), 0..100), text in any::<String>()) {
        let _ = Manifest::from_json(&bytes);
        let _ = Manifest::from_json(format!("{{\"session_id\":{text}}}").as_bytes());
    }
}
