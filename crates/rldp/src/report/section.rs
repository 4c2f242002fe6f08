//! A part of a page that is written after the page, by another program.

use super::TableData;
use super::chart::Chart;
use super::markup::Markup;
use super::page::{banner, document, table};

/// Where a page takes a section that comes later.
pub(crate) const BEGIN: &str = "<!-- section -->";
/// Where that ends.
pub(crate) const END: &str = "<!-- end of section -->";

/// A titled part of a report: words, charts, tables.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// Banners: a loud word and what it means.
    pub banners: Vec<(String, String)>,
    /// Paragraphs.
    pub paragraphs: Vec<String>,
    /// Charts.
    pub charts: Vec<Chart>,
    /// Tables under their headings.
    pub tables: Vec<(String, TableData)>,
}

impl Section {
    pub(super) fn draw(&self, main: &mut Markup) {
        main.leaf("h2", &[], &self.title);
        for (head, text) in &self.banners {
            banner(main, head, text);
        }
        if !self.paragraphs.is_empty() {
            main.element("div", &[("class", "card")], |card| {
                for paragraph in &self.paragraphs {
                    card.leaf("p", &[], paragraph);
                }
            });
        }
        if self.charts.iter().any(|chart| !chart.is_empty()) {
            main.element("section", &[("class", "charts")], |section| {
                for chart in self.charts.iter().filter(|chart| !chart.is_empty()) {
                    chart.draw(section);
                }
            });
        }
        for (title, data) in &self.tables {
            table(main, title, data);
        }
    }

    /// A page of [`super::RunReport`] with these sections in it, in place of any that were put there before; nothing if the
    /// page has no place for them.
    #[must_use]
    pub fn put_into(sections: &[Self], page: &str) -> Option<String> {
        let begin = page.find(BEGIN)? + BEGIN.len();
        let end = begin + page[begin..].find(END)?;
        let mut markup = Markup::default();
        for section in sections {
            section.draw(&mut markup);
        }
        Some(format!(
            "{}{}{}",
            &page[..begin],
            markup.finish(),
            &page[end..]
        ))
    }

    /// A self-contained page of sections alone.
    #[must_use]
    pub fn page(title: &str, sections: &[Self]) -> String {
        document(title, |main| {
            main.element("header", &[], |header| {
                header.leaf("h1", &[], title);
            });
            for section in sections {
                section.draw(main);
            }
        })
    }
}
