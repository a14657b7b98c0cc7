//! String literals of a template as Python reads them. In: a template. Out: the same with the escapes that minijinja
//! reads in the same way.
//!
//! Jinja2 decodes a literal by `encode("ascii", "backslashreplace").decode("unicode-escape")`: a backslash before a line
//! break is a continuation, one before anything unknown stays. Only literals within tags are touched.

use minijinja::Error;

use super::rewrite::refused;
use super::show;

/// Rewrites the string literals of `source`, whose lines end in `\n`.
pub fn string_escapes(source: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = tag_start(rest) {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        rest = match tag.as_bytes()[1] {
            b'#' => copy_past(&mut out, tag, "#}"),
            _ if is_tag(tag, "raw") => copy_raw(&mut out, tag),
            mark => rewrite_tag(&mut out, tag, if mark == b'{' { "}}" } else { "%}" })?,
        };
    }
    Ok(out + rest)
}

fn tag_start(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| matches!(pair, b"{{" | b"{%" | b"{#"))
}

/// Whether `tag` begins with `{% word %}`.
fn is_tag(tag: &str, word: &str) -> bool {
    let body = tag.strip_prefix("{%").map(|body| body.trim_start_matches(['-', '+']).trim_start());
    let end = body.and_then(|body| body.strip_prefix(word)).map(str::trim_start);
    end.is_some_and(|end| end.trim_start_matches(['-', '+']).starts_with("%}"))
}

/// Copies up to and with `end`; returns what comes behind.
fn copy_past<'a>(out: &mut String, text: &'a str, end: &str) -> &'a str {
    let at = text.find(end).map_or(text.len(), |at| at + end.len());
    out.push_str(&text[..at]);
    &text[at..]
}

/// Copies a raw block up to its `endraw`, in which nothing is a tag.
fn copy_raw<'a>(out: &mut String, tag: &'a str) -> &'a str {
    let ends = tag.match_indices("{%").find(|(at, _)| is_tag(&tag[*at..], "endraw"));
    let at = ends.map_or(tag.len(), |(at, _)| at + 2);
    out.push_str(&tag[..at]);
    copy_past(out, &tag[at..], "%}")
}

/// Copies a tag up to and with `end`, its literals rewritten; an `end` between brackets is none.
fn rewrite_tag<'a>(out: &mut String, tag: &'a str, end: &str) -> Result<&'a str, Error> {
    out.push_str(&tag[..2]);
    let mut rest = &tag[2..];
    let mut depth = 0usize;
    while let Some(c) = rest.chars().next() {
        if depth == 0 && rest.starts_with(end) {
            return Ok(copy_past(out, rest, end));
        }
        match c {
            '"' | '\'' => {
                let Some(length) = literal_length(&rest[1..], c) else { break };
                out.push(c);
                literal(out, &rest[1..1 + length])?;
                out.push(c);
                rest = &rest[length + 2..];
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    // A literal or tag without an end: the parser will say so.
    out.push_str(rest);
    Ok("")
}

/// Bytes up to the closing `mark`.
fn literal_length(text: &str, mark: char) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let closes = c == mark && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(at)
    })
}

fn literal(out: &mut String, text: &str) -> Result<(), Error> {
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else { break };
        rest = &rest[c.len_utf8()..];
        let simple = match c {
            '\n' => continue,
            '\\' | '\'' | '"' => c,
            'a' => '\x07',
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            '0'..='7' => {
                let more = rest.bytes().take(2).take_while(|b| matches!(b, b'0'..=b'7')).count();
                let digits = format!("{c}{}", &rest[..more]);
                rest = &rest[more..];
                character(u32::from_str_radix(&digits, 8).ok(), c)?
            }
            'x' | 'u' | 'U' => hex(&mut rest, c)?,
            'N' => return Err(refused("a character by its name (\\N) is not known here")),
            // Unknown: the backslash stays. Beyond ASCII, what follows it is the code and not the character.
            c if c.is_ascii() => {
                out.push_str("\\\\");
                c
            }
            c => {
                out.push_str("\\\\");
                out.push_str(&show::code(c)[1..]);
                continue;
            }
        };
        match simple {
            '\\' | '\'' | '"' => out.extend(['\\', simple]),
            // Lines are counted: those of the literal and not those of its value.
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            other => out.push(other),
        }
    }
    out.push_str(rest);
    Ok(())
}

/// The character of `\x`, `\u` or `\U`; two halves of a surrogate pair make one.
fn hex(rest: &mut &str, kind: char) -> Result<char, Error> {
    let mut digits = |count: usize| -> Option<u32> {
        let digits = rest.get(..count).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *rest = &rest[count..];
        u32::from_str_radix(digits, 16).ok()
    };
    let code = digits(match kind {
        'x' => 2,
        'u' => 4,
        _ => 8,
    });
    if let Some(high @ 0xd800..=0xdbff) = code
        && let Some(tail) = rest.strip_prefix("\\u")
    {
        let low = tail.get(..4).and_then(|low| u32::from_str_radix(low, 16).ok());
        if let Some(low @ 0xdc00..=0xdfff) = low {
            *rest = &tail[4..];
            return character(Some(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00)), kind);
        }
    }
    character(code, kind)
}

fn character(code: Option<u32>, kind: char) -> Result<char, Error> {
    code.and_then(char::from_u32).ok_or_else(|| refused(format!("an escape \\{kind} that is no character")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_those_of_python() {
        let table = [
            (r"{{ '\/\a\d' }}", "{{ '\\\\/\x07\\\\d' }}"),
            ("{{ 'a\\\nb' }}", "{{ 'ab' }}"),
            (r#"{{ "\"\'\\" }}\n"#, r#"{{ "\"\'\\" }}\n"#),
            (r"{{ '\x41\101\u00e9\U0001F980\ud83e\udd80' }}", "{{ 'AAé🦀🦀' }}"),
            (r"{{ '\é\🦀' }}", r"{{ '\\xe9\\U0001f980' }}"),
            (r"{# '\a' #}\a{% raw %}{{ '\a' }}{% endraw %}", r"{# '\a' #}\a{% raw %}{{ '\a' }}{% endraw %}"),
            (r"{{ {'a': {'\v': '}}'}} }}\v", "{{ {'a': {'\x0b': '}}'}} }}\\v"),
            (r"{% if '\v' %}\v", "{% if '\x0b' %}\\v"),
            (r"{{ 'open\a", r"{{ 'open\a"),
        ];
        for (source, expected) in table {
            assert_eq!(string_escapes(source).unwrap(), expected, "{source}");
        }
        for source in [
            r"{{ '\x4' }}",
            r"{{ '\ud83e' }}",
            r"{{ '\U00110000' }}",
            r"{{ '\N{BULLET}' }}",
            r"{{ '\u+123' }}",
        ] {
            assert!(string_escapes(source).is_err(), "{source}");
        }
    }
}
