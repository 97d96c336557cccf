//! Chip callables of a session: out of the manifest, and by controls, inline and staged.

use echelon_runtime::{Callable, ChipCode, ChipDevices};
use echelon_wire::bootstrap::{CallableEntry, Manifest};
use echelon_wire::callable::{CallableKind, RegistryTarget};
use echelon_wire::codec::{Decode as _, Encode as _};
use echelon_wire::frame::control::chip::ChipBlob;
use echelon_wire::frame::control::register::{RegisterCommand, PAYLOAD_VERSION};
use echelon_wire::frame::control::stage::{StageAppend, StageBegin, StageToken};
use echelon_wire::frame::ControlName;
use echelon_wire::limits::MAX_CHIP_BLOB_BYTES;

use super::command::Session;
use crate::chip::{self, staging::TOKEN_BYTES};

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The devices that a manifest asks for, each there; `None` for none.
pub(super) fn devices(manifest: &Manifest) -> Result<Option<ChipDevices>, String> {
    if manifest.device_ids.is_empty() {
        return Ok(None);
    }
    let devices = ChipDevices {
        platform: manifest.platform.clone(),
        runtime: manifest.runtime.clone(),
        ids: manifest.device_ids.clone(),
    };
    chip::check_devices(&devices).map_err(text)?;
    Ok(Some(devices))
}

/// True for an entry that [`entries`] answers for.
pub(super) fn is_entry(entry: &CallableEntry, registry: RegistryTarget) -> bool {
    registry == RegistryTarget::InnerL3Worker && entry.kind == CallableKind::ChipCallable.name()
}

/// The chip callables of a manifest, verified like those of controls.
pub(super) fn entries(
    manifest: &Manifest,
    devices: Option<&ChipDevices>,
) -> Result<Vec<Callable>, String> {
    let registry = RegistryTarget::InnerL3Worker;
    let mut seen = std::collections::HashSet::new();
    let mut callables = Vec::new();
    for (index, entry) in manifest.inner_l3_worker.iter().enumerate() {
        if !is_entry(entry, registry) {
            continue;
        }
        let at = |text: String| format!("manifest entry {index} of {}: {text}", registry.name());
        let callable = entry_callable(entry, devices).map_err(at)?;
        if !seen.insert(callable.digest) {
            return Err(at(format!("{} is listed twice", callable.digest)));
        }
        callables.push(callable);
    }
    Ok(callables)
}

fn entry_callable(
    entry: &CallableEntry,
    devices: Option<&ChipDevices>,
) -> Result<Callable, String> {
    let got = entry.registry().map_err(text)?;
    if got != RegistryTarget::InnerL3Worker {
        return Err(format!("target_registry is {}", got.name()));
    }
    if let Some(version) = entry.payload_version.filter(|v| *v != PAYLOAD_VERSION) {
        return Err(format!(
            "payload_version is {version}, expected {PAYLOAD_VERSION}"
        ));
    }
    let digest = entry.digest().map_err(text)?;
    let hex = entry
        .payload_hex
        .as_deref()
        .ok_or("payload_hex is missing")?;
    let payload = from_hex(hex).ok_or("payload_hex is not hexadecimal")?;
    let code = chip::verify_inline(&digest, &payload).map_err(text)?;
    callable(code, devices)
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                Some((digit(*high)? << 4 | digit(*low)?) as u8)
            }
            _ => None,
        })
        .collect()
}

/// The callable of verified machine code, if this session has chips that it fits.
fn callable(code: ChipCode, devices: Option<&ChipDevices>) -> Result<Callable, String> {
    let Some(devices) = devices else {
        return Err("CHIP_CALLABLE: this session has no chip workers".to_owned());
    };
    let (platform, runtime) = (devices.platform.as_str(), devices.runtime.as_str());
    if (code.platform(), code.runtime()) != (platform, runtime) {
        return Err(format!(
            "CHIP_CALLABLE: the machine code is for platform {} with runtime {}, and the chips of this session are {platform} \
             with runtime {runtime}",
            code.platform(),
            code.runtime()
        ));
    }
    // The payload has no name: what messages say begins like the hashid.
    let digest = code.digest().to_string();
    let name = format!("chip:{}", digest.get(..12).unwrap_or(&digest));
    Ok(Callable::chip(&name, code))
}

impl Session {
    /// PREPARE of a chip callable: verified, and kept aside. Nothing is loaded before the commit.
    pub(super) fn prepare_chip(
        &mut self,
        command: &RegisterCommand<'_>,
    ) -> Result<Vec<u8>, String> {
        if self.chips.is_none() {
            return Err("CHIP_CALLABLE: this session has no chip workers".to_owned());
        }
        if command.payload_version != PAYLOAD_VERSION {
            return Err(format!(
                "payload_version is {}, expected {PAYLOAD_VERSION}",
                command.payload_version
            ));
        }
        let payload = chip::payload::decode(&command.payload).map_err(text)?;
        let staged = self
            .features
            .contains(echelon_wire::frame::Features::STAGED_BLOBS);
        let code = match &payload.blob {
            ChipBlob::Staged { blob_size, .. } if staged && *blob_size > MAX_CHIP_BLOB_BYTES => {
                return Err(format!(
                    "CHIP_CALLABLE: blob_size is {blob_size}, limit {MAX_CHIP_BLOB_BYTES}"
                ));
            }
            ChipBlob::Staged { token, .. } if staged => {
                let blob = self.staging.take(token).map_err(text)?;
                chip::payload::verify(&command.digest, &payload, blob)
            }
            _ => chip::verify_inline(&command.digest, &command.payload),
        };
        let callable = callable(code.map_err(text)?, self.chips.as_ref())?;
        self.check_room(&command.digest)?;
        let prepared = self.prepared_inner.prepare(command.digest, callable);
        prepared.map_err(text)?;
        Ok(Vec::new())
    }

    /// One of the controls of `staged_blobs`.
    pub(super) fn stage(&mut self, name: ControlName, command: &[u8]) -> Result<Vec<u8>, String> {
        match name {
            ControlName::StageBegin => {
                let begin = StageBegin::decode(command).map_err(text)?;
                if self.chips.is_none() {
                    return Err("CHIP_CALLABLE: this session has no chip workers".to_owned());
                }
                let token = random_token().map_err(text)?;
                self.staging.begin(&begin, token).map_err(text)?;
                let token = token.to_vec().into();
                return StageToken { token }.to_bytes().map_err(text);
            }
            ControlName::StageAppend => {
                let append = StageAppend::decode(command).map_err(text)?;
                self.staging.append(&append).map_err(text)?;
            }
            ControlName::StageSeal => {
                let command = StageToken::decode(command).map_err(text)?;
                self.staging.seal(&command.token).map_err(text)?;
            }
            _ => {
                let command = StageToken::decode(command).map_err(text)?;
                self.staging.drop_blob(&command.token);
            }
        }
        Ok(Vec::new())
    }
}

fn random_token() -> rustix::io::Result<[u8; TOKEN_BYTES]> {
    let mut token = [0; TOKEN_BYTES];
    rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty())?;
    Ok(token)
}
