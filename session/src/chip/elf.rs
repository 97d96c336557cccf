//! Machine code of platform `cpu`, looked at without running it: an ELF shared object for this machine with the two symbols of
//! `session/include/echelon_chip.h`.

use echelon_wire::callable::{read_signature_schema, Direction};
use echelon_wire::limits::MAX_CHIP_DIRECTIONS;
use object::elf::{EM_386, EM_AARCH64, EM_ARM, EM_PPC64, EM_RISCV, EM_X86_64, ET_DYN, PT_LOAD};
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Endianness, Object as _, ObjectSymbol as _, SymbolKind};

use super::ChipError;

/// The entry's name.
pub(super) const ENTRY: &str = "echelon_chip_entry";
/// The signature's name.
pub(super) const SIGNATURE: &str = "echelon_chip_signature";

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = EM_X86_64;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = EM_AARCH64;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("platform cpu knows the ELF machine numbers of x86_64 and aarch64; add this one's");

fn refused(text: impl Into<String>) -> ChipError {
    ChipError::Blob(text.into())
}

fn machine_name(machine: u16) -> String {
    match machine {
        EM_X86_64 => "x86_64".to_owned(),
        EM_AARCH64 => "aarch64".to_owned(),
        EM_386 => "i386".to_owned(),
        EM_ARM => "arm".to_owned(),
        EM_RISCV => "riscv".to_owned(),
        EM_PPC64 => "ppc64".to_owned(),
        other => format!("ELF machine {other}"),
    }
}

/// The signature that the code declares.
///
/// # Errors
/// [`ChipError::Blob`]: not ELF, of another class, byte order or machine, no shared object, or without one of the symbols.
pub(super) fn describe(blob: &[u8]) -> Result<Vec<Direction>, ChipError> {
    check_header(blob)?;
    let text = |error: object::Error| refused(format!("it is a broken ELF file: {error}"));
    let elf = ElfFile64::<Endianness>::parse(blob).map_err(text)?;
    let endian = elf.endian();
    let header = elf.elf_header();
    if header.e_type(endian) != ET_DYN {
        return Err(refused(
            "it is no shared object; build it with cc -shared -fPIC",
        ));
    }
    let symbol = |name: &str, kind: SymbolKind, hint: &str| {
        let defined = |s: &object::read::elf::ElfSymbol64<'_, '_, Endianness>| {
            s.name() == Ok(name) && s.is_definition() && s.is_global() && s.kind() == kind
        };
        let found = elf.dynamic_symbols().find(defined);
        found.ok_or_else(|| {
            refused(format!(
                "it does not export {name}; {hint} of echelon_chip.h"
            ))
        })
    };
    symbol(ENTRY, SymbolKind::Text, "define it with ECHELON_CHIP_ENTRY")?;
    let signature = symbol(
        SIGNATURE,
        SymbolKind::Data,
        "declare the parameters with ECHELON_CHIP_SIGNATURE",
    )?;
    let (address, size) = (signature.address(), signature.size());
    if size > (8 + 4 * MAX_CHIP_DIRECTIONS) as u64 {
        return Err(refused(format!(
            "{SIGNATURE} has {size} bytes; a signature has at most {MAX_CHIP_DIRECTIONS} parameters"
        )));
    }
    let schema = elf
        .elf_program_headers()
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_LOAD)
        .find_map(|segment| {
            segment
                .data_range(endian, blob, address, size)
                .ok()
                .flatten()
        })
        .ok_or_else(|| refused(format!("{SIGNATURE} lies outside the file")))?;
    read_signature_schema(schema).map_err(|error| {
        refused(format!(
            "{SIGNATURE} is no signature of ECHELON_CHIP_SIGNATURE: {error}"
        ))
    })
}

/// The first bytes, each with its own answer.
fn check_header(blob: &[u8]) -> Result<(), ChipError> {
    let Some(head) = blob.get(..20) else {
        return Err(refused(format!(
            "{} bytes are no ELF file; build a shared object with cc -shared -fPIC",
            blob.len()
        )));
    };
    if head[..4] != [0x7f, b'E', b'L', b'F'] {
        return Err(refused(
            "it is no ELF file; build a shared object with cc -shared -fPIC",
        ));
    }
    if head[4] != 2 {
        return Err(refused("it is not a 64-bit ELF file"));
    }
    let native: u8 = if cfg!(target_endian = "little") { 1 } else { 2 };
    if head[5] != native {
        return Err(refused("its byte order is not this machine's"));
    }
    let machine = u16::from_ne_bytes([head[18], head[19]]);
    if machine != MACHINE {
        return Err(refused(format!(
            "it is for {}, and this machine is {}",
            machine_name(machine),
            machine_name(MACHINE)
        )));
    }
    Ok(())
}
