//! Placeholder until the process layer lands: the signatures that `worker` uses.
/// Why a process could not be started or ended.
#[derive(Debug, thiserror::Error)]
#[error("the process layer is not built yet")]
pub struct ProcessError;
/// Starts and watches children.
pub struct Keeper;
impl Keeper {
    /// Starts it.
    ///
    /// # Errors
    /// Never.
    pub fn start() -> Result<Self, ProcessError> {
        Ok(Self)
    }
    /// Ends all children.
    ///
    /// # Errors
    /// Never.
    pub fn stop(&self, _deadline: std::time::Instant) -> Result<(), ProcessError> {
        Ok(())
    }
}
