//! lengths and counts that the input cannot justify are refused before anything is allocated for them.

use echelon_wire::bootstrap::{json_len, ManifestError};
use echelon_wire::callable::decode_serialized;
use echelon_wire::frame::control::buffer::{CopyHeader, CopyTo};
use echelon_wire::frame::control::chip::ChipCallablePayload;
use echelon_wire::frame::control::register::RegisterCommand;
use echelon_wire::limits::{
    MAX_COPY_FROM_BYTES, MAX_COPY_TO_BYTES, MAX_INLINE_BYTES, MAX_PAYLOAD_BYTES, MAX_SCALARS,
    MAX_TENSORS,
};
use echelon_wire::{
    encode_frame, BufferId, CallConfig, Carrier, Completion, Control, ControlName, ControlReply,
    DataType, Decode, DecodeError, Digest, Encode, EncodeError, Frame, FrameHeader, FrameType,
    Generation, RemoteTensorDesc, Sequence, SessionId, TaskArgsWire, TaskPayload, TensorMeta,
    WorkerId, Writer,
};

fn counts(tensors: u32, scalars: u32) -> Vec<u8> {
    let mut bytes = tensors.to_le_bytes().to_vec();
    bytes.extend(scalars.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes
}

/// Both counts are read before either is judged, the limit comes first, and legal counts still need their bytes.
#[test]
fn r_069_counts_are_checked_before_lists_are_made() {
    let decode = |bytes: &[u8]| TaskArgsWire::decode(bytes, Carrier::V1).expect_err("refused");
    assert_eq!(
        decode(&counts(u32::MAX, u32::MAX)),
        DecodeError::TooLong {
            field: "RemoteTaskArgs.tensor_count",
            got: u32::MAX.into(),
            limit: MAX_TENSORS.into()
        }
    );
    assert_eq!(
        decode(&counts(0, u32::MAX)),
        DecodeError::TooLong {
            field: "RemoteTaskArgs.scalar_count",
            got: u32::MAX.into(),
            limit: MAX_SCALARS.into()
        }
    );
    let needed = u64::from(MAX_TENSORS) * 45 + u64::from(MAX_SCALARS) * 8 + 4;
    assert_eq!(
        decode(&counts(MAX_TENSORS, MAX_SCALARS)),
        DecodeError::Truncated {
            field: "RemoteTaskArgs",
            needed,
            available: 4
        }
    );
    assert!(matches!(
        decode(&counts(0, 0)[..7]),
        DecodeError::Truncated { .. }
    ));
}

/// Descriptors use bytes that were counted for scalars: the list of scalars is checked again.
#[test]
fn r_069_descriptors_cannot_hide_missing_scalars() {
    let mut args = TaskArgsWire {
        tensors: vec![TensorMeta::new(&[0], DataType::Int8).expect("valid"); 8],
        sidecars: vec![Some(RemoteTensorDesc::host_inline(0, 0)); 8],
        ..TaskArgsWire::default()
    };
    args.scalars = vec![0; 8];
    let mut writer = Writer::new();
    args.encode(Carrier::V1, &mut writer).expect("valid");
    let mut bytes = writer.into_bytes();
    // 4 + 4 + 8 * 44 + 8 * 81 bytes stand before the scalars; the claim grows to what the first check lets pass.
    bytes[4..8].copy_from_slice(&88_u32.to_le_bytes());
    assert_eq!(
        TaskArgsWire::decode(&bytes, Carrier::V1),
        Err(DecodeError::Truncated {
            field: "RemoteTaskArgs.scalars",
            needed: 704,
            available: 68
        })
    );
}

/// Every length field says 2^32-1 where almost nothing follows.
#[test]
fn r_069_lengths_are_checked_before_bytes_are_taken() {
    let huge = u32::MAX.to_le_bytes();
    let after = |zeros: usize| [vec![0; zeros], huge.to_vec()].concat();
    let too_long = |error: DecodeError| matches!(error, DecodeError::TooLong { got, .. } if got == u64::from(u32::MAX));
    assert!(too_long(
        CallConfig::decode(&after(28)).expect_err("refused")
    ));
    assert!(too_long(
        Completion::decode(&after(12)).expect_err("refused")
    ));
    assert!(too_long(
        TaskArgsWire::decode(&after(8), Carrier::V1).expect_err("refused")
    ));
    let control = [1_u32.to_le_bytes(), 1_u32.to_le_bytes(), huge].concat();
    assert!(too_long(Control::decode(&control).expect_err("refused")));
    let mut reply = [vec![0; 8], 1_u32.to_le_bytes().to_vec(), vec![0; 8]].concat();
    assert!(too_long(
        ControlReply::decode(&[reply.clone(), huge.to_vec()].concat()).expect_err("refused")
    ));
    reply.extend([0; 4]);
    assert!(too_long(
        ControlReply::decode(&[reply, huge.to_vec()].concat()).expect_err("refused")
    ));
    assert!(too_long(
        ChipCallablePayload::decode(&huge).expect_err("refused")
    ));
    let register = [
        1_u32.to_le_bytes().to_vec(),
        3_u32.to_le_bytes().to_vec(),
        vec![0; 32],
        1_u32.to_le_bytes().to_vec(),
        huge.to_vec(),
    ]
    .concat();
    assert!(too_long(
        RegisterCommand::decode(&register).expect_err("refused")
    ));
    let spyc = [b"SPYC\x01\x01\0\0".to_vec(), vec![0xff; 8]].concat();
    assert!(matches!(
        decode_serialized(&spyc),
        Err(DecodeError::TooLong { .. })
    ));
    assert!(matches!(json_len(huge), Err(ManifestError::TooLong { .. })));
}

/// The length of the JSON document is refused one byte over the limit.
#[test]
fn r_069_the_json_limit_is_16_mib() {
    assert_eq!(json_len((16_u32 << 20).to_le_bytes()), Ok(16 << 20));
    assert!(json_len(((16_u32 << 20) + 1).to_le_bytes()).is_err());
}

fn frame(payload: &[u8]) -> Result<Vec<u8>, EncodeError> {
    encode_frame(
        FrameType::Control,
        SessionId(1),
        WorkerId(0),
        Sequence(1),
        payload,
    )
}

#[test]
fn the_largest_frame_fits_and_one_byte_more_does_not() {
    let mut payload = vec![0; MAX_PAYLOAD_BYTES as usize];
    let bytes = frame(&payload).expect("fits");
    let Frame {
        header,
        payload: read,
    } = echelon_wire::decode_frame(&bytes).expect("valid");
    assert_eq!(header.payload_bytes, MAX_PAYLOAD_BYTES);
    assert_eq!(read.len(), payload.len());
    payload.push(0);
    assert!(matches!(frame(&payload), Err(EncodeError::TooLong { .. })));
    let count = payload.len();
    assert!(FrameHeader::new(
        FrameType::Task,
        SessionId(1),
        WorkerId(0),
        Sequence(1),
        count
    )
    .is_err());
}

/// The largest copies of the contract fit one frame each, to the byte.
#[test]
fn the_largest_copies_fill_a_frame() {
    let header = CopyHeader {
        worker_id: WorkerId(0),
        buffer_id: BufferId(1),
        generation: Generation(1),
        offset: 0,
        size: MAX_COPY_TO_BYTES,
    };
    let data = vec![7; MAX_COPY_TO_BYTES as usize];
    let copy = CopyTo {
        header,
        data: data.as_slice().into(),
    };
    let control = Control::of(ControlName::CopyToRemote, &copy).expect("fits");
    let payload = control.to_bytes().expect("fits");
    assert_eq!(payload.len(), MAX_PAYLOAD_BYTES as usize);
    assert!(frame(&payload).is_ok());

    // The head for a vectored write is the beginning of the same payload.
    let mut head = Writer::new();
    header.encode_copy_to_head(&mut head).expect("fits");
    assert_eq!(head.as_bytes(), &payload[..48]);

    let over = CopyHeader {
        size: MAX_COPY_TO_BYTES + 1,
        ..header
    };
    assert!(over.encode_copy_to_head(&mut Writer::new()).is_err());
    assert!(CopyHeader {
        size: MAX_COPY_FROM_BYTES,
        ..header
    }
    .check_copy_from()
    .is_ok());
    assert!(CopyHeader {
        size: MAX_COPY_FROM_BYTES + 1,
        ..header
    }
    .check_copy_from()
    .is_err());
    let reply = ControlReply::success(Sequence(1), ControlName::CopyFromRemote, 1, vec![]);
    let mut head = Writer::new();
    reply
        .encode_head(MAX_COPY_FROM_BYTES as usize, &mut head)
        .expect("fits");
    assert_eq!(
        head.len() as u64 + MAX_COPY_FROM_BYTES,
        u64::from(MAX_PAYLOAD_BYTES)
    );
}

/// The largest task of the contract is written and read; each list one longer is refused on both ends.
#[test]
fn the_largest_task_fits_and_one_more_of_anything_does_not() {
    let tensor = TensorMeta::new(&[1], DataType::Uint8).expect("valid");
    let desc = RemoteTensorDesc::host_inline(0, 1);
    let largest = || TaskPayload {
        digest: Digest([0; 32]),
        config: CallConfig {
            output_prefix: "p".repeat(1023),
            ..CallConfig::default()
        },
        args: TaskArgsWire {
            tensors: vec![tensor; MAX_TENSORS as usize],
            sidecars: vec![Some(desc); MAX_TENSORS as usize],
            scalars: vec![0; MAX_SCALARS as usize],
            inline: vec![0; MAX_INLINE_BYTES as usize].into(),
        },
    };
    let bytes = largest().to_bytes(Carrier::V1).expect("fits");
    assert!(bytes.len() < MAX_PAYLOAD_BYTES as usize);
    assert_eq!(TaskPayload::decode(&bytes, Carrier::V1), Ok(largest()));

    let mut task = largest();
    task.args.tensors.push(tensor);
    task.args.sidecars.push(Some(desc));
    assert!(matches!(
        task.to_bytes(Carrier::V1),
        Err(EncodeError::TooLong { got: 4097, .. })
    ));
    let mut task = largest();
    task.args.scalars.push(0);
    assert!(matches!(
        task.to_bytes(Carrier::V1),
        Err(EncodeError::TooLong { got: 4097, .. })
    ));
    let mut task = largest();
    task.args.inline.to_mut().push(0);
    assert!(matches!(
        task.to_bytes(Carrier::V1),
        Err(EncodeError::TooLong { .. })
    ));
}
