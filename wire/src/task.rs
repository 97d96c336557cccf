//! What a task consists of: callable, settings, arguments. The same bytes travel in a TASK frame and in a mailbox slot.

use std::borrow::Cow;

use crate::buffer::{AddressSpace, RemoteTensorDesc};
use crate::call_config::CallConfig;
use crate::callable::Digest;
use crate::codec::{Decode, Encode, Reader, Writer};
use crate::error::{DecodeError, EncodeError, ListViolation, RuleViolation};
use crate::frame::Features;
use crate::limits::{MAX_INLINE_BYTES, MAX_SCALARS, MAX_TENSORS, TENSOR_BYTES};
use crate::tensor::TensorMeta;

/// What carries the encoding. It decides about [`AddressSpace::LocalShared`], the descriptor's flags and FLOAT64, nothing
/// else. What a connection negotiated is in its [`Features`], and from them alone comes the carrier of its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// A TASK frame of a session that accepted these extensions; `float64` and `task_tags` matter here.
    Wire(Features),
    /// A mailbox slot shared by two processes of one host.
    Mailbox,
}

impl Carrier {
    /// A TASK frame of SLR3 version 1.
    pub const V1: Self = Self::Wire(Features::NONE);

    /// True when the task may use what `extension` adds; a mailbox has all of it.
    pub const fn has(self, extension: Features) -> bool {
        match self {
            Self::Wire(accepted) => accepted.contains(extension),
            Self::Mailbox => true,
        }
    }
}

/// Arguments of a task (`RemoteTaskArgs` in the contract).
///
/// `u32` tensor count, `u32` scalar count, the tensors (44 bytes each), the sidecars (1 byte, or 81 with a descriptor),
/// the scalars (8 bytes each), `u32` arena length, the arena.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskArgsWire<'a> {
    /// Tensor arguments, at most 4096.
    pub tensors: Vec<TensorMeta>,
    /// One entry for each tensor: where its bytes are; `None` only suits a tensor of 0 bytes.
    pub sidecars: Vec<Option<RemoteTensorDesc>>,
    /// Scalar arguments as bit patterns, at most 4096.
    pub scalars: Vec<u64>,
    /// The inline arena, at most 1 MiB.
    pub inline: Cow<'a, [u8]>,
}

impl<'a> TaskArgsWire<'a> {
    /// Appends the arguments.
    ///
    /// # Errors
    /// [`EncodeError`] over a limit, for lists of different lengths, or for a descriptor that breaks a rule.
    pub fn encode(&self, carrier: Carrier, writer: &mut Writer) -> Result<(), EncodeError> {
        self.encode_before_inline(carrier, self.inline.len(), writer)?;
        writer.raw(&self.inline);
        Ok(())
    }

    /// Appends everything up to the bytes of an inline arena of so many bytes, which the caller appends from where they are.
    ///
    /// # Errors
    /// As [`TaskArgsWire::encode`].
    pub fn encode_before_inline(
        &self,
        carrier: Carrier,
        inline: usize,
        writer: &mut Writer,
    ) -> Result<(), EncodeError> {
        if self.sidecars.len() != self.tensors.len() {
            return Err(RuleViolation {
                field: "RemoteTaskArgs.sidecars",
                got: self.sidecars.len() as i128,
                rule: "there must be one sidecar entry for each tensor",
            }
            .into());
        }
        writer.length(
            "RemoteTaskArgs.tensor_count",
            self.tensors.len(),
            MAX_TENSORS,
        )?;
        writer.length(
            "RemoteTaskArgs.scalar_count",
            self.scalars.len(),
            MAX_SCALARS,
        )?;
        self.check_descriptors(carrier, inline as u64)?;
        for tensor in &self.tensors {
            tensor.encode(writer)?;
        }
        for sidecar in &self.sidecars {
            writer.u8(u8::from(sidecar.is_some()));
            if let Some(desc) = sidecar {
                desc.put(writer);
            }
        }
        for scalar in &self.scalars {
            writer.u64(*scalar);
        }
        writer.length("RemoteTaskArgs.inline", inline, MAX_INLINE_BYTES)
    }

    /// Reads arguments that fill `bytes` exactly.
    ///
    /// # Errors
    /// [`DecodeError`] for the first field that is wrong.
    pub fn decode(bytes: &'a [u8], carrier: Carrier) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let tensor_count = reader.u32("RemoteTaskArgs.tensor_count")?;
        let scalar_count = reader.u32("RemoteTaskArgs.scalar_count")?;
        check_count("RemoteTaskArgs.tensor_count", tensor_count, MAX_TENSORS)?;
        check_count("RemoteTaskArgs.scalar_count", scalar_count, MAX_SCALARS)?;
        // The smallest input that can hold the counts; so no list is allocated that the input does not justify.
        let needed =
            u64::from(tensor_count) * (TENSOR_BYTES as u64 + 1) + u64::from(scalar_count) * 8 + 4;
        reader.require("RemoteTaskArgs", needed)?;

        let mut tensors = Vec::with_capacity(tensor_count as usize);
        for index in 0..tensor_count {
            let tensor = TensorMeta::read_for(&mut reader, carrier)
                .map_err(|error| error.at("RemoteTaskArgs.tensors", index))?;
            tensors.push(tensor);
        }
        let mut sidecars = Vec::with_capacity(tensor_count as usize);
        for index in 0..tensor_count {
            let sidecar = read_sidecar(&mut reader, carrier)
                .map_err(|error| error.at("RemoteTaskArgs.sidecars", index))?;
            sidecars.push(sidecar);
        }
        // Descriptors took bytes that the first estimate did not know of.
        reader.require("RemoteTaskArgs.scalars", u64::from(scalar_count) * 8)?;
        let mut scalars = Vec::with_capacity(scalar_count as usize);
        for _ in 0..scalar_count {
            scalars.push(reader.u64("RemoteTaskArgs.scalars")?);
        }
        let inline = Cow::Borrowed(reader.blob("RemoteTaskArgs.inline", MAX_INLINE_BYTES)?);
        reader.finish("RemoteTaskArgs")?;
        let args = Self {
            tensors,
            sidecars,
            scalars,
            inline,
        };
        args.check_descriptors(carrier, args.inline.len() as u64)?;
        Ok(args)
    }

    /// Checks what a worker needs beyond a well-formed message before it runs the task: a tensor has as many bytes as
    /// its descriptor says, and only one of 0 bytes may come without a descriptor.
    ///
    /// The sender calls it before sending, the receiver before it builds the tensors. It is no part of decoding because
    /// version 1 answers such a task with a failed COMPLETION.
    ///
    /// # Errors
    /// [`DecodeError::At`] with the index of the tensor.
    pub fn check_extents(&self) -> Result<(), DecodeError> {
        for ((index, tensor), sidecar) in (0u32..).zip(&self.tensors).zip(&self.sidecars) {
            check_one_extent(tensor, sidecar.as_ref()).map_err(|violation| {
                DecodeError::from(violation).at("RemoteTaskArgs.tensors", index)
            })?;
        }
        Ok(())
    }

    /// The bytes of the arena that `desc` names; `None` unless it is inline and within the arena.
    pub fn inline_bytes(&self, desc: &RemoteTensorDesc) -> Option<&[u8]> {
        if desc.address_space != AddressSpace::HostInline {
            return None;
        }
        let start = usize::try_from(desc.inline_payload_offset).ok()?;
        let length = usize::try_from(desc.inline_payload_len).ok()?;
        self.inline.get(start..start.checked_add(length)?)
    }

    /// The same arguments with an arena of their own.
    pub fn into_owned(self) -> TaskArgsWire<'static> {
        TaskArgsWire {
            tensors: self.tensors,
            sidecars: self.sidecars,
            scalars: self.scalars,
            inline: Cow::Owned(self.inline.into_owned()),
        }
    }

    /// Semantic rules, in order of the arguments: extents first, then each present descriptor.
    fn check_descriptors(&self, carrier: Carrier, inline_len: u64) -> Result<(), ListViolation> {
        for (index, tensor) in (0u32..).zip(&self.tensors) {
            let checked = tensor
                .check_dtype(carrier)
                .and_then(|()| tensor.check_extent());
            checked.map_err(|violation| ListViolation {
                list: "RemoteTaskArgs.tensors",
                index,
                violation,
            })?;
        }
        for (index, sidecar) in (0u32..).zip(&self.sidecars) {
            if let Some(desc) = sidecar {
                desc.check(inline_len, carrier)
                    .map_err(|violation| ListViolation {
                        list: "RemoteTaskArgs.sidecars",
                        index,
                        violation,
                    })?;
            }
        }
        Ok(())
    }
}

fn check_count(field: &'static str, got: u32, limit: u32) -> Result<(), DecodeError> {
    if got > limit {
        return Err(DecodeError::TooLong {
            field,
            got: got.into(),
            limit: limit.into(),
        });
    }
    Ok(())
}

fn read_sidecar(
    reader: &mut Reader<'_>,
    carrier: Carrier,
) -> Result<Option<RemoteTensorDesc>, DecodeError> {
    match reader.u8("Sidecar.present")? {
        0 => Ok(None),
        1 => RemoteTensorDesc::read_for(reader, carrier).map(Some),
        got => Err(RuleViolation::new("Sidecar.present", got, "it must be 0 or 1").into()),
    }
}

fn check_one_extent(
    tensor: &TensorMeta,
    desc: Option<&RemoteTensorDesc>,
) -> Result<(), RuleViolation> {
    let nbytes = tensor.check_extent()?;
    match desc {
        Some(desc) if desc.nbytes != nbytes => Err(RuleViolation::new(
            "RemoteTensorDesc.nbytes",
            desc.nbytes,
            "it must equal the size that shape and element type give",
        )),
        None if nbytes != 0 => Err(RuleViolation::new(
            "Tensor.nbytes",
            nbytes,
            "a tensor with bytes needs a descriptor",
        )),
        _ => Ok(()),
    }
}

/// Bytes of the digest in front, and of the words of the [`CallConfig`] behind it.
const DIGEST_BYTES: usize = 32;
const CONFIG_WORDS_BYTES: usize = 7 * 4;

/// One task: which callable, with which settings, on which arguments.
///
/// | offset | size | field |
/// |---:|---:|---|
/// | 0 | 32 | callable digest |
/// | 32 | 32 + n | [`CallConfig`] |
/// | … | to the end | [`TaskArgsWire`] |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPayload<'a> {
    /// Identity of the callable.
    pub digest: Digest,
    /// Per-call settings.
    pub config: CallConfig,
    /// Arguments.
    pub args: TaskArgsWire<'a>,
}

impl<'a> TaskPayload<'a> {
    /// Appends the payload.
    ///
    /// # Errors
    /// As [`CallConfig`]'s encoding and [`TaskArgsWire::encode`].
    pub fn encode(&self, carrier: Carrier, writer: &mut Writer) -> Result<(), EncodeError> {
        self.encode_before_inline(carrier, self.args.inline.len(), writer)?;
        writer.raw(&self.args.inline);
        Ok(())
    }

    /// As [`TaskArgsWire::encode_before_inline`], for the whole task, with its errors.
    pub fn encode_before_inline(
        &self,
        carrier: Carrier,
        inline: usize,
        writer: &mut Writer,
    ) -> Result<(), EncodeError> {
        writer.raw(&self.digest.0);
        self.config.encode(writer)?;
        self.args.encode_before_inline(carrier, inline, writer)
    }

    /// The encoding in a buffer of its own.
    ///
    /// # Errors
    /// As [`TaskPayload::encode`].
    pub fn to_bytes(&self, carrier: Carrier) -> Result<Vec<u8>, EncodeError> {
        let mut writer = Writer::new();
        self.encode(carrier, &mut writer)?;
        Ok(writer.into_bytes())
    }

    /// Reads a payload that fills `bytes` exactly; the arena is borrowed.
    ///
    /// # Errors
    /// [`DecodeError`] for the first field that is wrong.
    pub fn decode(bytes: &'a [u8], carrier: Carrier) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let digest = Digest(reader.array("TASK.callable_digest")?);
        let config = CallConfig::read(&mut reader)?;
        let args = TaskArgsWire::decode(reader.rest(), carrier)?;
        Ok(Self {
            digest,
            config,
            args,
        })
    }

    /// True when the bytes say, where they would say it if they are a task, that there is no tensor. Costs nothing to ask.
    pub fn names_no_tensor(bytes: &[u8]) -> bool {
        let word = |at: usize| {
            let word = bytes.get(at..)?.first_chunk::<4>()?;
            Some(u32::from_le_bytes(*word) as usize)
        };
        let prefix_at = DIGEST_BYTES + CONFIG_WORDS_BYTES;
        let count = word(prefix_at).and_then(|prefix| word((prefix_at + 4).checked_add(prefix)?));
        count == Some(0)
    }

    /// The same task with an arena of its own.
    pub fn into_owned(self) -> TaskPayload<'static> {
        TaskPayload {
            digest: self.digest,
            config: self.config,
            args: self.args.into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::TensorFlags;
    use crate::tensor::DataType;

    fn args(shape: &[u32], desc: Option<RemoteTensorDesc>) -> TaskArgsWire<'static> {
        TaskArgsWire {
            tensors: vec![TensorMeta::new(shape, DataType::Int32).expect("valid")],
            sidecars: vec![desc],
            scalars: Vec::new(),
            inline: vec![1, 2, 3, 4, 5, 6, 7, 8].into(),
        }
    }

    fn encoded(args: &TaskArgsWire<'_>, carrier: Carrier) -> Result<Vec<u8>, EncodeError> {
        let mut writer = Writer::new();
        args.encode(carrier, &mut writer)?;
        Ok(writer.into_bytes())
    }

    /// lists of different lengths are an error, never cut to the shorter one.
    #[test]
    fn r_078_every_tensor_needs_its_entry() {
        let mut args = args(&[1], None);
        args.sidecars.clear();
        let error = encoded(&args, Carrier::V1).expect_err("refused");
        assert!(
            error.to_string().contains("RemoteTaskArgs.sidecars"),
            "{error}"
        );
    }

    /// sender and receiver refuse inline data of another size than shape and type give.
    #[test]
    fn r_076_extents_have_to_agree() {
        let good = args(&[2], Some(RemoteTensorDesc::host_inline(0, 8)));
        good.check_extents().expect("agrees");
        let bad = args(&[3], Some(RemoteTensorDesc::host_inline(0, 8)));
        let error = bad.check_extents().expect_err("differs");
        assert!(
            error.to_string().contains("`RemoteTensorDesc.nbytes` is 8"),
            "{error}"
        );
        // Version 1 lets the codec pass it: the session answers with a failed COMPLETION.
        let bytes = encoded(&bad, Carrier::V1).expect("well-formed");
        let read = TaskArgsWire::decode(&bytes, Carrier::V1).expect("well-formed");
        assert!(read.check_extents().is_err());
    }

    /// a tensor with bytes but without a place is refused; one of 0 bytes needs none.
    #[test]
    fn r_077_only_empty_tensors_come_without_a_descriptor() {
        args(&[0, 7], None).check_extents().expect("empty");
        assert!(args(&[1], None).check_extents().is_err());
    }

    #[test]
    fn inline_bytes_stay_within_the_arena() {
        let args = args(&[1], None);
        let bytes =
            |offset, nbytes| args.inline_bytes(&RemoteTensorDesc::host_inline(offset, nbytes));
        assert_eq!(bytes(2, 3), Some(&[3, 4, 5][..]));
        assert_eq!(bytes(8, 0), Some(&[][..]));
        assert_eq!(bytes(8, 1), None);
        assert_eq!(bytes(u64::MAX, 2), None);
        let local = RemoteTensorDesc::local_shared(0, 0, 4, TensorFlags::default()).expect("valid");
        assert_eq!(args.inline_bytes(&local), None);
    }

    /// Memory of one host and its flags exist in a mailbox only; no connection can name them.
    #[test]
    fn local_memory_never_leaves_the_host() {
        let flags = TensorFlags {
            tag: Some(2),
            read_only: true,
        };
        let desc = RemoteTensorDesc::local_shared(3, 64, 8, flags).expect("valid");
        let args = args(&[2], Some(desc));
        let bytes = encoded(&args, Carrier::Mailbox).expect("a mailbox takes it");
        assert_eq!(
            TaskArgsWire::decode(&bytes, Carrier::Mailbox),
            Ok(args.clone())
        );
        assert_eq!(desc.tensor_flags(), Ok(flags));
        for carrier in [Carrier::V1, Carrier::Wire(Features::from_bits(u64::MAX))] {
            assert!(encoded(&args, carrier).is_err());
            assert!(TaskArgsWire::decode(&bytes, carrier).is_err());
        }
        assert!(desc.to_bytes().is_err());
    }

    /// a connection carries tags when it accepted `task_tags`, then each descriptor has one, and nothing besides it.
    #[test]
    fn r_109_flags_of_a_connection_are_a_tag_or_nothing() {
        let tagged = Carrier::Wire(Features::TASK_TAGS);
        let others = Carrier::Wire(Features::from_bits(!Features::TASK_TAGS.bits()));
        for flags in (0..=u64::from(u8::MAX)).chain((8..64).map(|bit| 8 | 1 << bit)) {
            let desc = RemoteTensorDesc {
                flags,
                ..RemoteTensorDesc::host_inline(0, 8)
            };
            let args = args(&[2], Some(desc));
            for (carrier, legal) in [
                (tagged, (8..=12).contains(&flags)),
                (others, flags == 0),
                (Carrier::V1, flags == 0),
            ] {
                assert_eq!(
                    encoded(&args, carrier).is_ok(),
                    legal,
                    "{flags} {carrier:?}"
                );
                // The bytes as a peer that checks nothing would send them.
                let mut bytes = encoded(
                    &self::args(&[2], Some(RemoteTensorDesc::host_inline(0, 8))),
                    Carrier::V1,
                )
                .expect("valid");
                let at = 8 + 44 + 1 + 72;
                bytes[at..at + 8].copy_from_slice(&flags.to_le_bytes());
                let read = TaskArgsWire::decode(&bytes, carrier);
                assert_eq!(read.is_ok(), legal, "{flags} {carrier:?}");
                if let Err(error) = read {
                    let text = error.to_string();
                    assert!(
                        text.starts_with("entry 0 of `RemoteTaskArgs.sidecars`: "),
                        "{text}"
                    );
                    assert!(text.contains("RemoteTensorDesc.flags"), "{text}");
                }
            }
        }
    }

    /// The error names the argument by its index.
    #[test]
    fn errors_name_the_argument() {
        let mut args = args(&[2], Some(RemoteTensorDesc::host_inline(0, 8)));
        args.tensors.push(args.tensors[0]);
        args.sidecars
            .push(Some(RemoteTensorDesc::host_inline(1, 8)));
        let error = encoded(&args, Carrier::V1).expect_err("beyond the arena");
        assert!(
            error
                .to_string()
                .starts_with("entry 1 of `RemoteTaskArgs.sidecars`: "),
            "{error}"
        );
    }
}
