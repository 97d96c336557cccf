//! Error texts: those that travel are bounded in bytes and cut where a character ends (contract §11, R-238).

use echelon_wire::limits::MAX_ERROR_MESSAGE_BYTES;

/// What stands where text was taken out.
const GAP: &str = "\n[...]\n";

/// `text` cut to [`MAX_ERROR_MESSAGE_BYTES`] bytes.
///
/// The last line of a traceback says what happened and the first who, so the middle is taken out: the beginning keeps a
/// third. A last line that is too long by itself is cut at its end.
#[must_use]
pub fn cut(text: String) -> String {
    let limit = MAX_ERROR_MESSAGE_BYTES as usize;
    if text.len() <= limit {
        return text;
    }
    let last_line = text.trim_end().rfind('\n').map_or(0, |at| at + 1);
    let tail_room = limit - limit / 3 - GAP.len();
    let last_len = text.len() - last_line;
    if last_line == 0 || last_len > tail_room {
        let head = prefix(
            &text,
            if last_line == 0 {
                limit
            } else {
                last_line.min(limit / 3)
            },
        );
        if last_line == 0 {
            return head.to_owned();
        }
        let (_, last) = text.split_at(last_line);
        return format!(
            "{head}{GAP}{}",
            prefix(last, limit - head.len() - GAP.len())
        );
    }
    let head = prefix(&text, limit / 3);
    format!(
        "{head}{GAP}{}",
        suffix(&text, limit - head.len() - GAP.len())
    )
}

/// Text of a peer, fit for logs and terminals: at most [`MAX_ERROR_MESSAGE_BYTES`] bytes, and nothing in it that moves a
/// cursor, changes a colour or turns the direction of writing. Line ends and tabs stay: tracebacks have them.
#[must_use]
pub fn of_peer(text: &str) -> String {
    let plain = |c: char| matches!(c, '\n' | '\t') || !(c.is_control() || turns_writing(c));
    if text.chars().all(plain) {
        return cut(text.to_owned());
    }
    // No character takes more room than ten bytes for one of its own, so what is cut away later is not written first.
    let text = prefix(text, 10 * MAX_ERROR_MESSAGE_BYTES as usize);
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if plain(character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_default());
        }
    }
    cut(shown)
}

/// The marks that make text read in another order than it is.
fn turns_writing(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What a panic says.
#[must_use]
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("with a value that is not text")
}

/// The longest beginning of at most `limit` bytes.
fn prefix(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    text.split_at(end).0
}

/// The longest end of at most `limit` bytes.
fn suffix(text: &str, limit: usize) -> &str {
    let start = text.len().saturating_sub(limit);
    let start = (start..=text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len());
    text.split_at(start).1
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = MAX_ERROR_MESSAGE_BYTES as usize;

    #[test]
    fn a_peers_text_is_bounded_and_moves_no_cursor_r_079() {
        let plain = "Traceback:\n\tat größe 語\nValueError: x";
        assert_eq!(of_peer(plain), plain);
        let forged = "\u{1b}[2J\u{1b}]0;title\u{7}\rOK\u{9b}31m\u{202e}gnp\0\u{7f}";
        let shown = of_peer(forged);
        assert_eq!(
            shown,
            "\\u{1b}[2J\\u{1b}]0;title\\u{7}\\rOK\\u{9b}31m\\u{202e}gnp\\u{0}\\u{7f}"
        );
        for long in [
            "x".repeat(1 << 20),
            "\u{1b}".repeat(1 << 20),
            "語".repeat(1 << 19),
        ] {
            let shown = of_peer(&long);
            assert!(shown.len() <= LIMIT && shown.len() > LIMIT - 8);
            assert!(!shown.contains(char::is_control));
        }
    }

    #[test]
    fn short_text_stays() {
        assert_eq!(cut("é".repeat(LIMIT / 2)), "é".repeat(LIMIT / 2));
    }

    #[test]
    fn a_cut_ends_at_a_character_r_238() {
        for text in [
            "é".repeat(4000),
            format!("x{}", "é".repeat(4000)),
            format!("head\n{}", "語".repeat(4000)),
        ] {
            let short = cut(text.clone());
            assert!(
                short.len() <= LIMIT && short.len() > LIMIT - 8,
                "{}",
                short.len()
            );
            assert_eq!(short.chars().next(), text.chars().next());
        }
    }

    #[test]
    fn the_first_and_the_last_line_survive() {
        let text = format!(
            "remote worker_id=3 sequence=4: Traceback\n{}ValueError: boom",
            "  frame\n".repeat(4000)
        );
        let short = cut(text);
        assert!(short.len() <= LIMIT);
        assert!(short.starts_with("remote worker_id=3 sequence=4: Traceback\n"));
        assert!(short.ends_with("\nValueError: boom"));
    }

    #[test]
    fn an_overlong_last_line_keeps_its_beginning() {
        let text = format!(
            "remote worker_id=3: Traceback\n  frame\nValueError: {}",
            "x".repeat(9000)
        );
        let short = cut(text);
        assert_eq!(short.len(), LIMIT);
        assert!(short
            .lines()
            .last()
            .expect("lines")
            .starts_with("ValueError: xxx"));
    }
}
