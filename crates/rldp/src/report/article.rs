//! A page of headings, paragraphs, tables and charts, for reports that are not about one run.

use std::io;
use std::path::Path;

use super::Section;
use super::markup::Markup;
use super::page::{banner, document};

/// A self-contained page in the style of the run's report.
#[derive(Clone, Debug, Default)]
pub struct Article {
    /// The title.
    pub title: String,
    /// One line under it.
    pub subtitle: String,
    /// When it was written, as text.
    pub created: String,
    /// Warnings, each in a banner: name and text.
    pub banners: Vec<(String, String)>,
    /// The content, in order.
    pub sections: Vec<Section>,
}

impl Article {
    /// The page.
    #[must_use]
    pub fn to_html(&self) -> String {
        document(&self.title, |main| self.content(main))
    }

    fn content(&self, main: &mut Markup) {
        main.element("header", &[], |header| {
            header.leaf("h1", &[], &self.title);
            for line in [&self.subtitle, &self.created] {
                if !line.is_empty() {
                    header.leaf("p", &[], line);
                }
            }
        });
        for (head, text) in &self.banners {
            banner(main, head, text);
        }
        for section in &self.sections {
            section.draw(main);
        }
        main.leaf(
            "footer",
            &[],
            "Written by rldp. The page is self-contained: it loads nothing and runs no script.",
        );
    }

    /// Writes the page: first beside `path`, then moved there, so that a crash leaves the old page or the new one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        super::write_page(&self.to_html(), path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Chart, Series, TableData};

    #[test]
    fn a_page_holds_its_parts_and_escapes_them() {
        let article = Article {
            title: "A <study>".into(),
            banners: vec![("Not private".into(), "exact".into())],
            sections: vec![Section {
                title: "One".into(),
                banners: Vec::new(),
                paragraphs: vec!["a & b".into()],
                tables: vec![(
                    "Numbers".into(),
                    TableData {
                        header: vec!["arm".into()],
                        rows: vec![vec!["x < y".into()]],
                    },
                )],
                charts: vec![
                    Chart::new(
                        "Falls",
                        "step",
                        "loss",
                        vec![Series::new("a", vec![(0.0, 2.0), (1.0, 1.0)])],
                    ),
                    Chart::new("Nothing", "step", "loss", vec![]),
                ],
            }],
            ..Article::default()
        };
        let page = article.to_html();
        for part in [
            "A &lt;study&gt;",
            "a &amp; b",
            "x &lt; y",
            "Falls",
            "Numbers",
            "Not private",
            "<svg",
        ] {
            assert!(page.contains(part), "{part} is missing");
        }
        assert!(!page.contains("Nothing"));
    }
}
