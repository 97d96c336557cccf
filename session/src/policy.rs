//! What a session may load. Checked in the runner before the import happens, because an import runs code.

/// Which modules callables may come from, and whether they may travel as pickles.
#[derive(Debug, Clone, Default)]
pub struct ImportPolicy {
    /// Allowed module prefixes; empty allows every module, which is the default on insecure loopback.
    prefixes: Vec<String>,
    serialized: bool,
}

impl ImportPolicy {
    /// A policy that allows modules equal to one of `prefixes` or below it; no prefix allows all.
    #[must_use]
    pub fn new(prefixes: Vec<String>) -> Self {
        Self {
            prefixes,
            serialized: false,
        }
    }

    /// Whether callables that travel as pickles are taken too. A pickle can run anything: with it, prefixes mean nothing.
    #[must_use]
    pub fn with_serialized(mut self, serialized: bool) -> Self {
        self.serialized = serialized;
        self
    }

    /// What [`Self::with_serialized`] was told.
    #[must_use]
    pub fn takes_serialized(&self) -> bool {
        self.serialized
    }

    /// Whether `module` may be imported.
    ///
    /// # Errors
    /// The refusal in words, naming the module and what is allowed.
    pub fn check(&self, module: &str) -> Result<(), String> {
        let below = |prefix: &str| {
            module
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if self.prefixes.is_empty() || self.prefixes.iter().any(|prefix| below(prefix)) {
            return Ok(());
        }
        Err(format!(
            "importing {module:?} is not allowed by this worker, allowed are {}; start it with --allow-import {module}",
            self.prefixes.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_prefix_allows_everything() {
        assert_eq!(ImportPolicy::default().check("os"), Ok(()));
    }

    #[test]
    fn a_prefix_ends_at_a_dot_r_202() {
        let policy = ImportPolicy::new(vec!["pkg.sub".to_owned(), "tool".to_owned()]);
        for module in ["pkg.sub", "pkg.sub.deep", "tool"] {
            assert_eq!(policy.check(module), Ok(()));
        }
        for module in ["pkg", "pkg.subway", "os", "toolbox", ""] {
            assert!(policy.check(module).is_err(), "{module}");
        }
    }
}
