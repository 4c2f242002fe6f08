//! Templates and the choice of the text.

use super::super::{DataError, Template, TextSource};
use super::{message, table};

const TABLE: &str =
    "id,age,num.co,>30,glyburide-metformin,name\n1,62.84998,2,NO,Up,SECRET\n2,,,,,\n";

fn render(template: &str, row: usize) -> Result<String, DataError> {
    let table = table("a.csv", TABLE);
    Template::new("t.jinja", template)?
        .bind(&table)?
        .render(&table, row)
}

#[test]
fn values_filters_and_odd_names() {
    for (template, expected) in [
        ("{{ age }}", "62.84998"),
        (
            "{{ age|fixed }} {{ age|fixed(1) }} {{ id|fixed(2) }}",
            "63 62.8 1.00",
        ),
        (
            "{{ age|float }} {{ age|int }} {{ age|round }} {{ age|round(1) }} {{ id|round }}",
            "62.84998 62 63.0 62.8 1",
        ),
        ("{{ age|float > 60 }} {{ id|int + 1 }}", "True 2"),
        ("{{ row['num.co'] }} {{ num_co }} {{ row.id }}", "2 2 1"),
        ("{{ row['>30'] }} {{ _30 }}", "NO NO"),
        ("{{ glyburide_metformin|lower }}", "up"),
        ("  {% if age %}x{% endif %}\n ", "x"),
        ("{{ '-0.04'|fixed(1) }} {{ '-0.06'|fixed(1) }}", "0.0 -0.1"),
        ("{{ '<b>' }}", "<b>"),
        (
            "{% if row['absent'] is defined %}x{% else %}y{% endif %}",
            "y",
        ),
    ] {
        assert_eq!(render(template, 0).unwrap(), expected, "{template}");
    }
    assert_eq!(
        render(
            "[{{ age }}]{% if not num_co %}none{% endif %}{{ age|int(7) }}",
            1
        )
        .unwrap(),
        "[]none7"
    );
}

#[test]
fn an_alias_never_hides_a_real_column() {
    let table = table("a.csv", "a.b,a_b,a-b\n1,2,3\n");
    let template = Template::new("t", "{{ a_b }} {{ row['a.b'] }} {{ row['a-b'] }}").unwrap();
    assert_eq!(
        template.bind(&table).unwrap().render(&table, 0).unwrap(),
        "2 1 3"
    );
}

#[test]
fn unknown_variables_are_named_with_the_columns() {
    for (template, name) in [
        ("{{ agee }}", "agee"),
        ("{% if false %}{{ wrong }}{% endif %}", "wrong"),
        ("{{ row.nope }}", "row.nope"),
        ("{{ row['nope'] }}", "nope"),
        ("{{ num.co }}", "num"),
    ] {
        let text = message(&render(template, 0).unwrap_err());
        assert!(
            text.contains(&format!("unknown variable `{name}`")),
            "{text}"
        );
        assert!(
            text.contains("id, age, num.co, >30, glyburide-metformin, name"),
            "{text}"
        );
    }
}

#[test]
fn failures_name_the_place_and_never_a_value() {
    for (template, expected) in [
        ("\n{{ name|float }}", "template t.jinja, line 2"),
        ("{{ name|int }}", "is no number"),
        ("{{ name|round }}", "a.csv:2"),
        ("{{ name|fixed(2) }}", "is no number"),
        ("{{ name + 1 }}", "invalid operation"),
        ("{{ row[name] }}", "undefined"),
        ("{{ [1][name] }}", "undefined"),
        ("{{ name.nope() }}", "unknown method"),
        ("{{ {}[name].x }}", "undefined"),
        (
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "instructions",
        ),
        ("{{ name|nosuchfilter }}", "nosuchfilter"),
        ("{% include name %}", "template"),
    ] {
        let text = message(&render(template, 0).unwrap_err());
        assert!(
            text.contains(expected),
            "`{text}` does not contain `{expected}`"
        );
    }
    assert!(message(&render("{{ age|float }}", 1).unwrap_err()).contains("a.csv:3"));
}

#[test]
fn syntax_errors_have_a_line() {
    let error = Template::new("t.jinja", "fine\n{{ oops").unwrap_err();
    assert!(message(&error).contains("t.jinja, line 2"), "{error}");
}

#[test]
fn not_finite_words_are_no_numbers() {
    let table = table("a.csv", "x\nNaN\ninf\n");
    let template = Template::new("t", "{{ x|float }}")
        .unwrap()
        .bind(&table)
        .unwrap();
    assert!(template.render(&table, 0).is_err());
    assert!(template.render(&table, 1).is_err());
}

#[test]
fn the_text_must_be_chosen() {
    let many = table("a.csv", TABLE);
    let error = TextSource::choose(&many, None, None).unwrap_err();
    let text = message(&error);
    assert!(
        text.contains("has 6 columns") && text.contains("id, age, num.co"),
        "{text}"
    );
    let text = message(&TextSource::choose(&many, Some("nope"), None).unwrap_err());
    assert!(
        text.contains("no column `nope` for --text-column; the columns are: id, age"),
        "{text}"
    );
    let template = Template::new("t", "{{ id }}").unwrap();
    assert!(matches!(
        TextSource::choose(&many, Some("id"), Some(&template)),
        Err(DataError::TwoTexts { .. })
    ));
    assert_eq!(
        TextSource::choose(&many, Some("age"), None)
            .unwrap()
            .text(&many, 0)
            .unwrap(),
        "62.84998"
    );
    assert_eq!(
        TextSource::choose(&many, None, Some(&template))
            .unwrap()
            .text(&many, 1)
            .unwrap(),
        "2"
    );
    let single = table("a.csv", "x\n hello \n");
    assert_eq!(
        TextSource::choose(&single, None, None)
            .unwrap()
            .text(&single, 0)
            .unwrap(),
        "hello"
    );
}

#[test]
fn long_column_names_are_cut_in_messages() {
    // A file without a header line: its first record would be shown as names.
    let many = table("a.csv", &format!("{},b\n1,2\n", "SECRET ".repeat(30)));
    let error = TextSource::choose(&many, None, None)
        .unwrap_err()
        .to_string();
    assert!(error.len() < 300, "{error}");
}
