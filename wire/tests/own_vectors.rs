//! Our own vectors: every kind of message, also those of the mailbox and of extensions, annotated field by field.

mod common;

use common::layouts::{control_kinds, control_names, frame_types, payload_kinds};
use common::{assert_fields, list, recode, text, unhex, KINDS};
use serde_json::Value;

fn vectors(file: &str) -> Vec<Value> {
    let path = format!("{}/tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let json = std::fs::read_to_string(path).expect("a vector file");
    let document: Value = serde_json::from_str(&json).expect("JSON");
    list(&document["vectors"]).to_vec()
}

fn annotated_bytes(vector: &Value) -> Vec<u8> {
    list(&vector["parts"])
        .iter()
        .flat_map(|part| unhex(text(&part[0])))
        .collect()
}

#[test]
fn valid_vectors_decode_and_encode() {
    for vector in vectors("valid.json") {
        let name = text(&vector["name"]);
        let bytes = annotated_bytes(&vector);
        let recoded = recode(text(&vector["kind"]), &bytes);
        let recoded = recoded.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_fields(name, &vector["fields"], &recoded.fields);
        assert_eq!(recoded.bytes, bytes, "{name}");
    }
}

#[test]
fn every_kind_has_a_vector() {
    let vectors = vectors("valid.json");
    for kind in KINDS {
        assert!(
            vectors.iter().any(|vector| vector["kind"] == kind),
            "{kind} has none"
        );
    }
}

/// what a frame or a control carries has a kind, so that both codecs are held to it.
#[test]
fn r_073_whatever_travels_has_a_kind() {
    let (frames, controls) = (frame_types(), control_names());
    assert!(
        frames.len() >= 13 && controls.len() >= 20,
        "none was missed"
    );
    let carried = frames.into_iter().flat_map(payload_kinds);
    for kind in carried.chain(controls.into_iter().flat_map(control_kinds)) {
        assert!(KINDS.contains(kind), "{kind} is not in KINDS");
    }
}

#[test]
fn valid_vectors_cut_anywhere_are_refused() {
    for vector in vectors("valid.json") {
        let bytes = annotated_bytes(&vector);
        // The data of COPY_TO_REMOTE has no length of its own.
        let first_valid = if vector["kind"] == "copy_to" {
            36
        } else {
            bytes.len()
        };
        for cut in 0..first_valid {
            let recoded = recode(text(&vector["kind"]), &bytes[..cut]);
            assert!(recoded.is_err(), "{} cut at {cut}", vector["name"]);
        }
    }
}

/// Every refusal says which field and which value, as the vector demands.
#[test]
fn invalid_vectors_are_refused_by_name() {
    for vector in vectors("invalid.json") {
        let name = text(&vector["name"]);
        let error = recode(text(&vector["kind"]), &unhex(text(&vector["hex"])));
        let message = error.expect_err(name).to_string();
        assert!(
            message.contains(text(&vector["error"])),
            "{name}: {message}"
        );
    }
}
