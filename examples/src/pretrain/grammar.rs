//! A small text grammar: rules in a plain text file, expanded with a seeded generator.
//!
//! A grammar file holds rules. `== name` opens a rule; every further line is one alternative, `N* ` in front weighs it
//! N-fold, `#` starts a comment. Inside an alternative:
//!
//! | written | becomes |
//! | --- | --- |
//! | `{name}` | the variable `name` if it is bound, else an expansion of the rule `name` |
//! | `{name=rule}` | an expansion of `rule`, remembered as `name` until the text ends |
//! | `{12..40}`, `{0.5..2.5}` | a uniform number, with as many decimals as the lower end shows |
//! | `{~50..3000}` | the same, uniform on the logarithm |
//! | `[a\|b\|]` | one of the parts, which may be empty and may nest |
//! | `a~ ` | `a ` or `an `, by the letter that follows |
//! | `\n` | a line break |
//! | `^` | the next letter is a capital |
//! | `_` | the next letter stays as it is (`_pH`) |
//!
//! Sentences get their capital letter by themselves.

use std::collections::BTreeMap;

use crate::error::ExampleError;
use crate::pretrain::random::CorpusRandom;

/// How deep rules may nest: far above any sensible grammar, low enough to stop a rule that calls itself for ever.
const MAX_DEPTH: usize = 40;

/// Values a text has bound so far, by name.
pub type Variables = BTreeMap<String, String>;

/// A set of named rules.
#[derive(Debug, Clone, Default)]
pub struct Grammar {
    rules: BTreeMap<String, Rule>,
}

/// The alternatives of one rule and the running sum of their weights.
#[derive(Debug, Clone, Default)]
struct Rule {
    alternatives: Vec<String>,
    cumulative: Vec<u64>,
}

impl Grammar {
    /// Reads the rules of one or more grammar files; they share one name space.
    ///
    /// # Errors
    /// An alternative before the first rule, a rule defined twice or without alternatives.
    pub fn parse<'a>(sources: impl IntoIterator<Item = &'a str>) -> Result<Self, ExampleError> {
        let mut grammar = Self::default();
        for source in sources {
            let mut current: Option<String> = None;
            for line in source.lines() {
                let line = line.trim();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                if let Some(name) = line.strip_prefix("==") {
                    let name = name.trim().to_owned();
                    if grammar
                        .rules
                        .insert(name.clone(), Rule::default())
                        .is_some()
                    {
                        return Err(ExampleError::Grammar(format!(
                            "rule `{name}` is defined twice"
                        )));
                    }
                    current = Some(name);
                } else {
                    let rule = current
                        .as_ref()
                        .and_then(|name| grammar.rules.get_mut(name));
                    let Some(rule) = rule else {
                        return Err(ExampleError::Grammar(format!(
                            "`{line}` stands before the first rule"
                        )));
                    };
                    rule.push(line);
                }
            }
        }
        match grammar
            .rules
            .iter()
            .find(|(_, rule)| rule.alternatives.is_empty())
        {
            Some((name, _)) => Err(ExampleError::Grammar(format!(
                "rule `{name}` has no alternatives"
            ))),
            None => Ok(grammar),
        }
    }

    /// One text from the rule `name`, tidied: capitals, articles, line breaks.
    ///
    /// # Errors
    /// A name that is neither a variable nor a rule, a number range that cannot be read, unbalanced brackets.
    pub fn text(
        &self,
        name: &str,
        variables: &mut Variables,
        random: &mut CorpusRandom,
    ) -> Result<String, ExampleError> {
        let mut out = String::new();
        self.reference(name, variables, random, 0, &mut out)?;
        Ok(tidy(&out))
    }

    fn reference(
        &self,
        name: &str,
        variables: &mut Variables,
        random: &mut CorpusRandom,
        depth: usize,
        out: &mut String,
    ) -> Result<(), ExampleError> {
        if depth > MAX_DEPTH {
            return Err(ExampleError::Grammar(format!(
                "rule `{name}` nests deeper than {MAX_DEPTH}"
            )));
        }
        if let Some((variable, rule)) = name.split_once('=') {
            let mut value = String::new();
            self.reference(rule, variables, random, depth + 1, &mut value)?;
            out.push_str(&value);
            variables.insert(variable.to_owned(), value);
            return Ok(());
        }
        if let Some(value) = variables.get(name) {
            out.push_str(value);
            return Ok(());
        }
        if let Some((low, high)) = name.split_once("..") {
            return number(low, high, random, out);
        }
        let Some(rule) = self.rules.get(name) else {
            return Err(ExampleError::Grammar(format!(
                "`{{{name}}}` is neither a variable nor a rule"
            )));
        };
        self.expand(rule.pick(random), variables, random, depth + 1, out)
    }

    fn expand(
        &self,
        pattern: &str,
        variables: &mut Variables,
        random: &mut CorpusRandom,
        depth: usize,
        out: &mut String,
    ) -> Result<(), ExampleError> {
        let mut rest = pattern;
        while let Some(position) = rest.find(['{', '[']) {
            out.push_str(&rest[..position]);
            let inner_and_rest = &rest[position + 1..];
            if rest[position..].starts_with('{') {
                let Some(end) = inner_and_rest.find('}') else {
                    return Err(ExampleError::Grammar(format!(
                        "`{pattern}` lacks a closing brace"
                    )));
                };
                self.reference(&inner_and_rest[..end], variables, random, depth, out)?;
                rest = &inner_and_rest[end + 1..];
            } else {
                let (parts, after) = split_choice(inner_and_rest).ok_or_else(|| {
                    ExampleError::Grammar(format!("`{pattern}` lacks a closing bracket"))
                })?;
                let part = parts[random.below(parts.len() as u64) as usize];
                self.expand(part, variables, random, depth + 1, out)?;
                rest = after;
            }
        }
        out.push_str(rest);
        Ok(())
    }
}

impl Rule {
    fn push(&mut self, line: &str) {
        let weighted = line
            .split_once("* ")
            .and_then(|(weight, text)| Some((weight.parse::<u64>().ok()?, text)));
        let (weight, text) = weighted.unwrap_or((1, line));
        let before = self.cumulative.last().copied().unwrap_or(0);
        self.cumulative.push(before + weight.max(1));
        self.alternatives.push(text.to_owned());
    }

    fn pick(&self, random: &mut CorpusRandom) -> &str {
        let ticket = random.below(self.cumulative.last().copied().unwrap_or(1));
        let index = self.cumulative.partition_point(|&bound| bound <= ticket);
        self.alternatives.get(index).map_or("", String::as_str)
    }
}

/// Splits `a|b[c|d]|e] rest` (the opening bracket already read) into its parts and the rest.
fn split_choice(text: &str) -> Option<(Vec<&str>, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut nested) = (0, 0_usize);
    for (position, letter) in text.char_indices() {
        match letter {
            '[' => nested += 1,
            ']' if nested > 0 => nested -= 1,
            ']' => {
                parts.push(&text[start..position]);
                return Some((parts, &text[position + 1..]));
            }
            '|' if nested == 0 => {
                parts.push(&text[start..position]);
                start = position + 1;
            }
            _ => {}
        }
    }
    None
}

/// Writes a number between `low` and `high`, with the decimals of `low`.
fn number(
    low: &str,
    high: &str,
    random: &mut CorpusRandom,
    out: &mut String,
) -> Result<(), ExampleError> {
    let (logarithmic, low) = low
        .strip_prefix('~')
        .map_or((false, low), |rest| (true, rest));
    let decimals = low.split_once('.').map_or(0, |(_, digits)| digits.len());
    let read = |text: &str| {
        text.parse::<f64>()
            .map_err(|_| ExampleError::Grammar(format!("`{low}..{high}` is no range of numbers")))
    };
    let (low_value, high_value) = (read(low)?, read(high)?);
    // Half a last digit at both ends, so that every printed value inside the range is equally likely.
    let half = 0.5 * 10_f64.powi(-(decimals as i32));
    let value = if logarithmic {
        (low_value.ln() + random.unit() * (high_value.ln() - low_value.ln())).exp()
    } else {
        (low_value - half + random.unit() * (high_value - low_value + 2.0 * half))
            .clamp(low_value, high_value)
    };
    out.push_str(&format!("{value:.decimals$}"));
    Ok(())
}

/// Capitals at sentence starts and after `^`, `a~` resolved, doubled blanks removed, `\n` made a line break.
fn tidy(raw: &str) -> String {
    let raw = raw.replace("\\n", "\n");
    let letters: Vec<char> = raw.chars().collect();
    let mut out = String::with_capacity(raw.len());
    let mut capital = true;
    let mut ended = false;
    for (index, &letter) in letters.iter().enumerate() {
        match letter {
            '~' => {
                let next = letters[index + 1..]
                    .iter()
                    .find(|c| !matches!(c, ' ' | '^'));
                if next.is_some_and(|c| "aeiouAEIO8".contains(*c)) {
                    out.push('n');
                }
                continue;
            }
            '^' => {
                capital = true;
                continue;
            }
            '_' => {
                capital = false;
                ended = false;
                continue;
            }
            ' ' if out.is_empty() || out.ends_with([' ', '\n']) => continue,
            ' ' if ended => capital = true,
            '.' | ',' | ';' | ':' | '!' | '?' | '\n' if out.ends_with(' ') => {
                out.pop();
            }
            _ => {}
        }
        ended = matches!(letter, '.' | '!' | '?');
        if capital && !letter.is_whitespace() && letter != '"' {
            out.extend(letter.to_uppercase());
            capital = false;
        } else {
            out.push(letter);
        }
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn once(source: &str) -> Result<String, ExampleError> {
        let grammar = Grammar::parse([source])?;
        grammar.text("top", &mut Variables::new(), &mut CorpusRandom::new(1))
    }

    #[test]
    fn tidies_articles_capitals_blanks_and_lines() {
        assert_eq!(
            once("== top\na~ apple ,  a~ pear. then ^london\\nnext").unwrap(),
            "An apple, a pear. Then London\nnext"
        );
    }

    #[test]
    fn remembers_bound_words() {
        let text = once("== top\n{who=name} saw {who}.\n== name\n[Ada|Bo|Cy|Di|Ed|Flo]").unwrap();
        let words: Vec<&str> = text.trim_end_matches('.').split(' ').collect();
        assert_eq!(words[0], words[2]);
    }

    #[test]
    fn numbers_stay_in_range_with_their_decimals() {
        let grammar = Grammar::parse(["== top\n{3..5} {0.50..0.75} {~10..1000}"]).unwrap();
        let mut random = CorpusRandom::new(3);
        for _ in 0..300 {
            let text = grammar
                .text("top", &mut Variables::new(), &mut random)
                .unwrap();
            let parts: Vec<&str> = text.split(' ').collect();
            assert!((3..=5).contains(&parts[0].parse::<i32>().unwrap()));
            assert!(
                (0.5..=0.75).contains(&parts[1].parse::<f64>().unwrap()) && parts[1].len() == 4
            );
            assert!((10..=1000).contains(&parts[2].parse::<i32>().unwrap()));
        }
    }

    #[test]
    fn weights_are_respected() {
        let grammar = Grammar::parse(["== top\n9* a\nb"]).unwrap();
        let mut random = CorpusRandom::new(5);
        let common = (0..2000)
            .filter(|_| {
                grammar
                    .text("top", &mut Variables::new(), &mut random)
                    .unwrap()
                    == "A"
            })
            .count();
        // Binomial(2000, 0.9): six standard deviations are 81.
        assert!((1800_i64 - common as i64).abs() < 81, "{common}");
    }

    #[test]
    fn says_what_is_wrong_with_a_grammar() {
        for bad in [
            "== top\n{nowhere}",
            "== top\n[a|b",
            "== top\n{a",
            "== top",
            "lost",
            "== top\nx\n== top\ny",
            "== top\n{top}",
        ] {
            assert!(matches!(once(bad), Err(ExampleError::Grammar(_))), "{bad}");
        }
    }
}
