//! The three controls that version 1 reserves and refuses.

use super::ControlName;

/// What a session answers, as an error, to a reserved control; `None` for every other control.
pub fn reserved_control_message(name: ControlName) -> Option<String> {
    match name {
        ControlName::CommInit | ControlName::AllocDomain | ControlName::ReleaseDomain => {
            Some(format!("unsupported reserved remote domain control {name}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_three_are_reserved() {
        let reserved: Vec<_> = ControlName::V1
            .into_iter()
            .filter_map(reserved_control_message)
            .collect();
        assert_eq!(
            reserved,
            ["COMM_INIT", "ALLOC_DOMAIN", "RELEASE_DOMAIN"]
                .map(|name| format!("unsupported reserved remote domain control {name}"))
        );
    }
}
