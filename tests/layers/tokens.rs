//! Rust source as words and signs: just enough of a lexer to follow paths. Comments and the
//! contents of strings are left out.

/// The tokens of `source`: identifiers, numbers, `::`, `=>`, `+=`, and single signs.
pub(crate) fn tokens(source: &str) -> Vec<String> {
    let chars: Vec<char> = source.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let len = match rest {
            ['/', '/', ..] => rest.iter().take_while(|sign| **sign != '\n').count(),
            ['/', '*', ..] => block_comment(rest),
            ['"', ..] => string(rest),
            ['b' | 'c', '"', ..] => 1 + string(&rest[1..]),
            ['r', '"' | '#', ..] if raw_string(rest) > 0 => raw_string(rest),
            ['b', 'r', '"' | '#', ..] if raw_string(&rest[1..]) > 0 => 1 + raw_string(&rest[1..]),
            ['\'', ..] => character_or_lifetime(rest),
            [':', ':', ..] | ['=', '>', ..] | ['+', '=', ..] => {
                found.push(rest[..2].iter().collect());
                2
            }
            [sign, ..] if is_word(*sign) => {
                let len = rest.iter().take_while(|sign| is_word(**sign)).count();
                found.push(rest[..len].iter().collect());
                len
            }
            [sign, ..] => {
                if !sign.is_whitespace() {
                    found.push(sign.to_string());
                }
                1
            }
            [] => 1,
        };
        at += len;
    }
    found
}

/// The tokens without modules under `#[cfg(test)]`.
pub(crate) fn tokens_without_tests(source: &str) -> Vec<String> {
    let all = tokens(source);
    let mark = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < all.len() {
        if all[at..].starts_with(&mark.map(str::to_owned)) {
            let open = all[at..].iter().position(|token| token == "{" || token == ";").unwrap();
            at += open;
            at += if all[at] == ";" { 1 } else { group(&all[at..]) };
        } else {
            kept.push(all[at].clone());
            at += 1;
        }
    }
    kept
}

/// How many tokens a group takes that begins with its opening bracket, both brackets included.
pub(crate) fn group(tokens: &[String]) -> usize {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index + 1;
        }
    }
    tokens.len()
}

pub(crate) fn is_word(sign: char) -> bool {
    sign.is_alphanumeric() || sign == '_'
}

fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        match rest[at..] {
            ['/', '*', ..] => {
                depth += 1;
                at += 2;
            }
            ['*', '/', ..] => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    break;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn string(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The length of `r#"…"#`, or 0 if it is none (`r#type`).
fn raw_string(rest: &[char]) -> usize {
    let hashes = rest[1..].iter().take_while(|sign| **sign == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let mut at = 2 + hashes;
    while at < rest.len() {
        let ends = rest[at] == '"'
            && rest[at + 1..].iter().take(hashes).filter(|sign| **sign == '#').count() == hashes;
        at += 1;
        if ends {
            return at + hashes;
        }
    }
    at
}

fn character_or_lifetime(rest: &[char]) -> usize {
    match rest {
        ['\'', '\\', _, tail @ ..] => 3 + tail.iter().take_while(|sign| **sign != '\'').count() + 1,
        ['\'', _, '\'', ..] => 3,
        _ => 1,
    }
}

#[test]
fn words_and_paths_come_out_and_text_does_not() {
    let source = r##"
        use a::b; // use c::d;
        /* use e::f; /* nested */ */
        let x = "g::h \" i::j"; let y = r#"k::l"#; let z = b"m::n"; let q = '"'; let r = '\'';
        fn s<'t>(u: &'t str) { v += 1 }
    "##;
    let found = tokens(source).join(" ");
    assert_eq!(
        found,
        "use a :: b ; let x = ; let y = ; let z = ; let q = ; let r = ; \
         fn s < t > ( u : & t str ) { v += 1 }"
    );
}

#[test]
fn test_modules_are_left_out_where_asked() {
    let source = "a(); #[cfg(test)] mod tests { b(); { c() } } d(); #[cfg(test)] mod tests; e();";
    assert_eq!(tokens_without_tests(source).join(""), "a();d();e();");
}
