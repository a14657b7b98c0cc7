//! Writing to a person: what cannot be written is no reason to panic, and what a file says cannot steer a terminal.

use std::io::{Write, stderr, stdout};

use crate::error::CliError;

/// Text for standard output. A reader that went away is an error like any other; `main` takes it as an end.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(CliError::io("writing to standard output"))
}

/// A line on standard error; lost if nobody takes it.
pub fn note(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}

/// Text with its control characters made visible, but for ends of lines.
pub fn visible(text: &str) -> String {
    let shown =
        |c: char| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn control_characters_are_shown() {
        assert_eq!(super::visible("a\u{1b}[2J\u{7}\nb\u{9b}é"), "a\\u{1b}[2J\\u{7}\nb\\u{9b}é");
    }
}
