//! Import targets, `module:qualname`.

use super::IdentityError;
use crate::frame::truncate_utf8;
use crate::limits::MAX_IMPORT_TARGET_BYTES;

/// `module:qualname`, every component a Python identifier.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImportTarget {
    module: String,
    qualname: String,
}

impl ImportTarget {
    /// Reads a target after stripping blank, tab, CR and LF at both ends.
    ///
    /// Identifiers are Unicode ones (`XID_Start` or `_`, then `XID_Continue`), keywords count as identifiers, and
    /// nothing is normalised: two spellings are two targets.
    ///
    /// # Errors
    /// [`IdentityError`] for the first rule that is broken.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        if text.len() > MAX_IMPORT_TARGET_BYTES {
            return Err(IdentityError::TargetTooLong {
                got: text.len(),
                limit: MAX_IMPORT_TARGET_BYTES,
            });
        }
        let separators = text.bytes().filter(|byte| *byte == b':').count();
        let (module, qualname) = match text.split_once(':') {
            Some(parts) if separators == 1 => parts,
            _ => return Err(IdentityError::TargetSeparators { got: separators }),
        };
        if module.is_empty() || qualname.is_empty() {
            return Err(IdentityError::TargetEmpty);
        }
        if module.starts_with('.') {
            return Err(IdentityError::TargetRelative);
        }
        if qualname.split('.').any(|component| component == "<locals>") {
            return Err(IdentityError::TargetLocal);
        }
        check_components("module", module)?;
        check_components("qualname", qualname)?;
        Ok(Self {
            module: module.to_owned(),
            qualname: qualname.to_owned(),
        })
    }

    /// Absolute module name.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// Dotted attribute path within the module.
    pub fn qualname(&self) -> &str {
        &self.qualname
    }
}

impl std::fmt::Display for ImportTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.module, self.qualname)
    }
}

impl std::str::FromStr for ImportTarget {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::parse(text)
    }
}

fn check_components(part: &'static str, path: &str) -> Result<(), IdentityError> {
    for component in path.split('.') {
        if component.is_empty() {
            return Err(IdentityError::TargetEmptyComponent { part });
        }
        if !is_identifier(component) {
            let component = truncate_utf8(component, 64).to_owned();
            return Err(IdentityError::TargetComponent { part, component });
        }
    }
    Ok(())
}

/// True for what Python's `str.isidentifier` accepts.
///
/// Python builds its tables from the same two derived properties, of the Unicode version it ships; a character that is
/// newer than the interpreter passes here and fails at import, with the importer's error.
pub fn is_identifier(text: &str) -> bool {
    let mut characters = text.chars();
    let Some(first) = characters.next() else {
        return false;
    };
    (first == '_' || unicode_ident::is_xid_start(first))
        && characters.all(unicode_ident::is_xid_continue)
}
