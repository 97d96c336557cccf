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

/// The joiners that newer versions of Unicode admit within identifiers and older interpreters do not.
const INVISIBLE: [char; 2] = ['\u{200c}', '\u{200d}'];

/// True for what Python's `str.isidentifier` accepts, but for two invisible characters.
///
/// Python builds its tables from the same two derived properties, of the Unicode version it ships; a character that is
/// newer than the interpreter passes here and fails at import, with the importer's error. The zero-width joiners are
/// refused whatever the version: two targets must not differ by something that cannot be seen.
pub fn is_identifier(text: &str) -> bool {
    let continues =
        |character| unicode_ident::is_xid_continue(character) && !INVISIBLE.contains(&character);
    let mut characters = text.chars();
    let Some(first) = characters.next() else {
        return false;
    };
    (first == '_' || unicode_ident::is_xid_start(first)) && characters.all(continues)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// what cannot be an absolute module and an attribute path of it is refused, each for its reason.
    #[test]
    fn r_103_bad_targets_are_refused() {
        use IdentityError as E;
        let parse = |text: &str| ImportTarget::parse(text).expect_err(text);
        assert_eq!(parse(""), E::TargetSeparators { got: 0 });
        assert_eq!(parse("a:b:c"), E::TargetSeparators { got: 2 });
        assert_eq!(parse(" : "), E::TargetEmpty);
        assert_eq!(parse(":"), E::TargetEmpty);
        assert_eq!(parse(".a:f"), E::TargetRelative);
        assert_eq!(parse("a:f.<locals>.g"), E::TargetLocal);
        assert_eq!(parse("a.:f"), E::TargetEmptyComponent { part: "module" });
        assert_eq!(parse("a:.f"), E::TargetEmptyComponent { part: "qualname" });
        for text in [
            "a:f\0",
            "a:f()",
            "a:1f",
            "a b:f",
            "a/b:f",
            "a:f-g",
            "a\u{a0}:f",
            "a:f\u{200b}",
            "a:\u{301}f",
        ] {
            assert!(matches!(parse(text), E::TargetComponent { .. }), "{text:?}");
        }
        let long = format!("a:{}", "f".repeat(MAX_IMPORT_TARGET_BYTES));
        assert!(matches!(parse(&long), E::TargetTooLong { .. }));
    }

    /// Characters that look alike stay different: nothing is normalised, so policies compare exact text.
    #[test]
    fn r_103_look_alikes_are_other_targets() {
        let latin = ImportTarget::parse("os:system").expect("valid");
        for other in ["\u{ff4f}s:system", "о\u{73}:system", "os:\u{17f}ystem"] {
            let parsed = ImportTarget::parse(other).expect("identifiers");
            assert_ne!(parsed, latin);
            assert_ne!(
                super::super::import_descriptor(&parsed),
                super::super::import_descriptor(&latin)
            );
        }
    }

    /// Python's rule: letters of any script, keywords too; some characters may stand anywhere but first.
    #[test]
    fn identifiers_are_those_of_python() {
        for text in [
            "_", "_1", "for", "für", "变量", "℘", "ⅷ", "a·b", "x\u{301}", "ª", "ﬁ",
        ] {
            assert!(is_identifier(text), "{text:?}");
        }
        for text in [
            "",
            "1",
            "·a",
            "a-b",
            "a b",
            "€",
            "a\u{200d}",
            "²",
            "\u{2e2f}",
        ] {
            assert!(!is_identifier(text), "{text:?}");
        }
    }

    #[test]
    fn messages_hold_one_short_component() {
        let error = ImportTarget::parse(&format!("a:{}", "é-".repeat(500))).expect_err("refused");
        assert!(error.to_string().len() < 200);
    }
}
