//! The vectors that come with the contract: valid ones, invalid ones, disputed ones, recorded ones.
//!
//! They lie beside the repository, not in it. `ECHELON_VECTORS` names their folder; without it the test looks in
//! `shared/vectors` at the root and above it, and says so when there is none.

mod common;

use common::{assert_fields, hex, list, recode, shared_file, text, unhex, vector_bytes, EXTENDED};
use echelon_wire::bootstrap::{DaemonReply, Manifest};
use echelon_wire::callable::{
    chip_descriptor, decode_serialized, digest_of, import_descriptor, serialized_descriptor,
    sha256, signature_schema, ChipIdentity, Direction, IdentityError,
};
use echelon_wire::{
    Completion, ControlName, ControlReply, Decode, Encode, Features, FrameType, Hashid, Hello,
    ImportTarget, ReadyState, Sequence, SessionId, WorkerId,
};
use serde_json::Value;

#[test]
fn valid_vectors_decode_to_their_fields_and_encode_to_their_bytes() {
    let Some(vectors) = shared_file("slr3_v1.json") else {
        return;
    };
    for vector in list(&vectors) {
        let (name, kind) = (text(&vector["name"]), text(&vector["kind"]));
        let bytes = vector_bytes(vector);
        let recoded = recode(kind, &bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_fields(name, &vector["fields"], &recoded.fields);
        assert!(recoded.bytes == bytes, "{name}: other bytes");
    }
    assert!(!list(&vectors).is_empty());
}

/// A frame's payload is the message that `inner` names.
#[test]
fn frames_hold_the_vectors_they_say() {
    let Some(vectors) = shared_file("slr3_v1.json") else {
        return;
    };
    for vector in list(&vectors) {
        let Some(inner) = vector.get("inner").and_then(Value::as_str) else {
            continue;
        };
        let inner = list(&vectors)
            .iter()
            .find(|candidate| candidate["name"] == *inner);
        if let Some(inner) = inner {
            let frame = vector_bytes(vector);
            let payload = echelon_wire::decode_frame(&frame).expect("valid").payload;
            assert_eq!(payload, vector_bytes(inner), "{}", vector["name"]);
        }
    }
}

/// No valid message has a beginning that is a valid message: every length stands before what it counts, and the parts
/// of fixed size have no end of their own. (IMPORT_BUFFER takes its last word from the end; what then remains for the
/// export is too short for its own lengths.) So every cut has to be refused. R-067.
#[test]
fn every_beginning_of_a_valid_vector_is_refused() {
    let Some(vectors) = shared_file("slr3_v1.json") else {
        return;
    };
    for vector in list(&vectors) {
        let bytes = vector_bytes(vector);
        let kind = text(&vector["kind"]);
        // The longest vectors are mostly one run of bytes: their ends and a sample of the middle.
        let step = if bytes.len() > 70_000 { 997 } else { 1 };
        let edges = (0..bytes.len())
            .filter(|cut| cut % step == 0 || *cut < 1024 || *cut + 1024 > bytes.len());
        for cut in edges {
            assert!(
                recode(kind, &bytes[..cut]).is_err(),
                "{} cut at {cut}",
                vector["name"]
            );
        }
    }
}

#[test]
fn every_valid_vector_with_a_byte_more_is_refused() {
    let Some(vectors) = shared_file("slr3_v1.json") else {
        return;
    };
    for vector in list(&vectors) {
        let mut bytes = vector_bytes(vector);
        bytes.push(0);
        assert!(
            recode(text(&vector["kind"]), &bytes).is_err(),
            "{}",
            vector["name"]
        );
    }
}

#[test]
fn invalid_vectors_are_refused() {
    let Some(vectors) = shared_file("slr3_v1_invalid.json") else {
        return;
    };
    for vector in list(&vectors) {
        let name = text(&vector["name"]);
        let bytes = vector_bytes(vector);
        let number = |key: &str| vector["context"][key].as_u64().expect("a number");
        let refused = match text(&vector["decoder"]) {
            decoder if decoder.starts_with("completion(") => {
                let completion = Completion::decode(&bytes).expect("well-formed");
                completion
                    .expect(Sequence(number("expected_sequence")))
                    .is_err()
            }
            decoder if decoder.starts_with("control_reply(") => {
                let reply = ControlReply::decode(&bytes).expect("well-formed");
                let code = number("expected_name") as u32;
                let name = ControlName::from_code(code, Features::NONE).expect("a name");
                let sequence = Sequence(number("expected_sequence"));
                reply
                    .expect(sequence, name, number("expected_version") as u32)
                    .is_err()
            }
            kind => recode(kind, &bytes).is_err(),
        };
        assert!(refused, "{name} was accepted");
    }
}

/// The disputed ones, settled by the last paragraph of section 12: BOOL is accepted, strings are UTF-8, diagnostics need
/// a prefix, an export's range must not overflow; what either codec refuses to encode, ours does.
#[test]
fn disputed_vectors_are_settled() {
    let Some(vectors) = shared_file("slr3_v1_disagree.json") else {
        return;
    };
    for vector in list(&vectors) {
        let (name, kind) = (text(&vector["name"]), text(&vector["kind"]));
        if vector["direction"] == "encode" {
            let mut hello = Hello {
                session_id: SessionId(0x1122_3344_5566_7788),
                worker_id: WorkerId(3),
                comm_profile: "sim".into(),
                feature_flags: 0,
                ready_state: ReadyState::Ready,
            };
            match name {
                "hello_encode_session_0" => hello.session_id = SessionId(0),
                "hello_encode_worker_neg" => hello.worker_id = WorkerId(-1),
                // Our HELLO has no version field: it cannot be asked to write another one.
                "hello_encode_version_2" => continue,
                other => panic!("{other} is new: settle it"),
            }
            assert!(hello.to_bytes().is_err(), "{name}");
            continue;
        }
        let recoded = recode(kind, &vector_bytes(vector));
        if name == "tensor_dtype_11_BOOL" {
            assert_fields(
                name,
                &vector["accepted_as"]["cpp"],
                &recoded.expect("accepted").fields,
            );
        } else {
            assert!(recoded.is_err(), "{name} was accepted");
        }
    }
}

#[test]
fn descriptors_and_hashids() {
    let Some(vectors) = shared_file("slr3_v1_hashids.json") else {
        return;
    };
    for example in list(&vectors["examples"]) {
        let descriptor = match text(&example["kind"]) {
            "PYTHON_IMPORT" => {
                import_descriptor(&ImportTarget::parse(text(&example["target"])).expect("valid"))
            }
            "PYTHON_SERIALIZED" => {
                let envelope = unhex(text(&example["payload_hex"]));
                serialized_descriptor(&sha256(decode_serialized(&envelope).expect("valid")))
            }
            "CHIP_CALLABLE" => {
                let signature: Vec<_> = list(&example["signature"])
                    .iter()
                    .map(|code| code.as_u64().expect("a number") as u32)
                    .map(|code| Direction::from_code(code).expect("a direction"))
                    .collect();
                let schema = signature_schema(&signature).expect("short");
                assert_eq!(hex(&schema), text(&example["signature_schema_hex"]));
                let identity = ChipIdentity {
                    platform: text(&example["platform"]),
                    runtime: text(&example["runtime"]),
                    blob_sha256: sha256(&unhex(text(&example["blob_hex"]))),
                    signature: &signature,
                };
                chip_descriptor(&identity).expect("valid")
            }
            other => panic!("{other} is new"),
        };
        assert_eq!(hex(&descriptor), text(&example["descriptor_hex"]));
        let hashid = Hashid(digest_of(&descriptor));
        assert_eq!(hashid.to_string(), text(&example["hashid"]));
        assert_eq!(Hashid::parse(text(&example["hashid"])), Ok(hashid));
    }
    for case in list(&vectors["import_target_parsing"]) {
        import_target(text(&case[0]), text(&case[1]), &case[2]);
    }
}

fn import_target(target: &str, verdict: &str, detail: &Value) {
    let parsed = ImportTarget::parse(target);
    if verdict == "OK" {
        let parsed = parsed.unwrap_or_else(|error| panic!("{target:?}: {error}"));
        assert_eq!(parsed.module(), text(&detail[0]));
        assert_eq!(parsed.qualname(), text(&detail[1]));
        return;
    }
    let error = parsed.expect_err(target);
    let same_reason = match &error {
        IdentityError::TargetSeparators { .. } => "exactly one ':'",
        IdentityError::TargetEmpty => "must be non-empty",
        IdentityError::TargetRelative => "must be absolute",
        IdentityError::TargetLocal => "<locals>",
        IdentityError::TargetEmptyComponent { .. } => "non-empty dot-separated",
        IdentityError::TargetComponent { .. } => "non-identifier component",
        other => panic!("{target:?}: {other}"),
    };
    assert!(text(detail).contains(same_reason), "{target:?}: {error}");
}

/// Every frame that was recorded between a parent and a session decodes, down to its payload, and encodes to itself.
#[test]
fn recorded_frames_decode() {
    let Some(transcript) = shared_file("slr3_v1_transcript.json") else {
        return;
    };
    let mut frames = 0;
    for event in list(&transcript["events"]) {
        let Some(recorded) = event.get("hex").and_then(Value::as_str) else {
            continue;
        };
        let bytes = unhex(recorded);
        let frame = echelon_wire::decode_frame(&bytes).expect("a recorded frame");
        let kind = match text(&event["frame_type"]) {
            "HELLO" => "hello",
            "TASK" => "task",
            "CONTROL" => "control",
            "CONTROL_REPLY" => "control_reply",
            "COMPLETION" => "completion",
            _ => continue,
        };
        let recoded = recode(kind, frame.payload).expect("a recorded payload");
        if kind == "task" {
            // Recorded tasks have uninitialised memory in shape words beyond the rank; ours have zeros.
            assert_eq!(recoded.bytes.len(), frame.payload.len());
            let again = recode(kind, &recoded.bytes).expect("our own payload");
            assert_eq!(again.fields, recoded.fields);
        } else {
            assert_eq!(recoded.bytes, frame.payload);
        }
        assert_eq!(
            frame.header.session_id.0,
            event["session_id"].as_u64().expect("an id")
        );
        frames += 1;
    }
    assert!(frames > 0);
    for exchange in list(&transcript["bootstrap"]) {
        let json = serde_json::to_vec(&exchange["json"]).expect("JSON");
        if exchange["dir"] == "request" {
            let manifest = Manifest::from_json(&json).expect("a recorded manifest");
            manifest.validate().expect("a recorded manifest");
            assert_eq!(
                serde_json::to_value(&manifest).expect("JSON"),
                exchange["json"]
            );
        } else {
            let reply = DaemonReply::from_json(&json).expect("a recorded reply");
            let frame = reply.to_frame().expect("short");
            assert_eq!(
                serde_json::from_slice::<Value>(&frame[4..]).expect("JSON"),
                exchange["json"]
            );
        }
    }
}

/// What a session answered, also to broken requests, is what our parent reads.
#[test]
fn recorded_replies_decode() {
    let Some(recording) = shared_file("slr3_v1_session.json") else {
        return;
    };
    let mut replies = 0;
    for case in list(&recording["cases"]) {
        let hello = unhex(text(&case["hello_hex"]));
        let hello = echelon_wire::decode_frame(&hello).expect("a recorded frame");
        Hello::decode(hello.payload).expect("a recorded HELLO");
        for step in list(&case["steps"]) {
            let Some(recorded) = step.get("reply_hex").and_then(Value::as_str) else {
                continue;
            };
            let bytes = unhex(recorded);
            let Ok(frame) = echelon_wire::decode_frame(&bytes) else {
                assert!(bytes.is_empty(), "{}", case["name"]);
                continue;
            };
            let kind = match frame.header.frame_type {
                FrameType::Completion => "completion",
                FrameType::ControlReply => "control_reply",
                other => panic!("{}: a session does not send {other:?}", case["name"]),
            };
            let recoded = recode(kind, frame.payload).expect("a recorded reply");
            assert_eq!(recoded.bytes, frame.payload, "{}", case["name"]);
            assert_eq!(
                recoded.fields["error_code"], step["error_code"],
                "{}",
                case["name"]
            );
            replies += 1;
        }
    }
    assert!(replies > 0);
}

/// The numbers of extensions do not exist in version 1, whatever the peer sends.
#[test]
fn version_1_vectors_mean_the_same_with_extensions() {
    let Some(vectors) = shared_file("slr3_v1.json") else {
        return;
    };
    for vector in list(&vectors) {
        if vector["kind"] == "frame" {
            let bytes = vector_bytes(vector);
            let plain = echelon_wire::decode_frame(&bytes);
            let extended = echelon_wire::frame::decode_frame_with(&bytes, EXTENDED);
            assert_eq!(plain, extended, "{}", vector["name"]);
        }
    }
}
