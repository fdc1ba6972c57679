//! Schemas that are inferred from the data.

use super::*;

/// The kinds of columns that a CSV file of `rows` rows gets, as `name:numeric` or `name:categorical`, and the notes.
fn kinds(rows: usize, columns: &[(&str, &dyn Fn(usize) -> String)]) -> (Vec<String>, String) {
    let mut text = String::from("label");
    for (name, _) in columns {
        text += &format!(",{name}");
    }
    for i in 0..rows {
        text += &format!("\n{}", i % 2);
        for (_, value) in columns {
            text += &format!(",{}", value(i));
        }
    }
    let dir = Dir::new();
    let (schema, notes) = DataSet::find(&dir.file("a.csv", text)).unwrap().infer(&Hints::default()).unwrap();
    let numeric = schema.numeric.iter().map(|c| format!("{}:numeric", c.name));
    let kinds = numeric.chain(schema.categorical.iter().map(|c| format!("{}:categorical", c.name))).collect();
    (kinds, notes.join("\n"))
}

#[test]
fn one_cell_does_not_decide_the_kind_of_a_column() {
    let number = |i: usize| format!("{}.{i}", i * 7919 % 1500);
    let with =
        |at: usize, cell: &'static str| move |i: usize| if i == at { cell.to_owned() } else { number(i) };
    for cell in ["inf", "-inf", "Infinity", "?", "\\N", "<NA>", "", "n/a", "broken"] {
        let (kinds, notes) = kinds(2000, &[("price", &with(1234, cell))]);
        assert_eq!(kinds, ["price:numeric"], "{cell}: {notes}");
        let said = match cell {
            "broken" => "price: 1 of 2000 values are not numbers, such as 'broken'",
            _ => &format!("price: 1 of 2000 values count as missing, such as '{cell}'"),
        };
        assert_eq!(notes.contains(said), !cell.is_empty(), "{cell}: {notes}");
    }
    let (kinds, notes) = kinds(
        2000,
        &[("code_or_number", &|i| if i % 20 == 0 { format!("x{}", i % 3) } else { number(i % 400) })],
    );
    assert_eq!(kinds, ["code_or_number:categorical"]);
    assert!(
        notes.contains("not numeric, because 100 of 2000 values are not numbers, such as 'x0'"),
        "{notes}"
    );
}

#[test]
fn ids_are_categories_and_row_numbers_are_left_out() {
    let id = |i: usize| (i * 7919 % 600 + 1000).to_string();
    let row = |i: usize| i.to_string();
    for name in ["uid", "UserID", "sku", "user", "item_id", "productId", "zip"] {
        assert_eq!(kinds(2000, &[(name, &id)]).0, [format!("{name}:categorical")]);
    }
    for name in ["age", "bid", "amount_paid", "num_items"] {
        assert_eq!(kinds(2000, &[(name, &id)]).0, [format!("{name}:numeric")]);
    }
    for name in ["", "Unnamed: 0", "id", "row_id", "index", "user_id"] {
        let (kinds, notes) = kinds(500, &[(name, &row), ("c", &|i| (i % 7).to_string())]);
        assert_eq!(kinds, ["c:categorical"], "{name}");
        assert!(notes.contains("left out: "), "{name}: {notes}");
    }
}

#[test]
fn headers_may_have_an_unnamed_column_and_names_of_years() {
    let dir = Dir::new();
    let read = |text: &str| DataSet::find(&dir.file("a.csv", text)).map(|data| data.names().join("|"));
    assert_eq!(read(",label,user\n0,1,7\n").unwrap(), "|label|user");
    assert_eq!(read("label,2019,2020\n0,1,7\n").unwrap(), "label|2019|2020");
    assert_eq!(read("user,click,\n0,1,\n").unwrap(), "user|click|");
    assert!(read("user,2019,2020\n0,1,7\n").is_err());
    assert!(read(",,\n0,1,7\n").is_err());
}

#[test]
fn a_schema_is_guessed() {
    let dir = Dir::new();
    let mut text = String::from("id,click,site_id,hour,price,age,name,amount,same\n");
    for i in 0..500u64 {
        let amount = if i % 50 == 0 { 100_000 } else { i % 7 };
        text += &format!(
            "{i},{},{},{},{}.5,{},n{i},{amount},z\n",
            i % 2,
            i * 7919 % 300,
            i % 24,
            i % 10,
            i * 31 % 450
        );
    }
    let path = dir.file("a.csv", text);
    let data = DataSet::find(&path).unwrap();
    let (mut schema, notes) = data.infer(&Hints::default()).unwrap();
    assert_eq!(schema.label, "click");
    let names = |s: &Schema| s.categorical.iter().map(|c| c.name.clone()).collect::<Vec<_>>().join(" ");
    assert_eq!(names(&schema), "site_id hour amount");
    assert!(schema.categorical.iter().all(|c| c.kind == Kind::Id));
    assert_eq!(schema.numeric.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["price", "age"]);
    let notes = notes.join("\n");
    assert!(notes.contains("left out: id (different in every row)"), "{notes}");
    assert!(
        notes.contains("left out: name (different") && notes.contains("left out: same (always"),
        "{notes}"
    );
    data.fit(&mut schema, &OpenOptions::default()).unwrap();
    let batch = read(&path, &schema, &OpenOptions::default()).unwrap();
    for j in 0..2 {
        let x: Vec<f64> = batch.numeric.iter().skip(j).step_by(2).map(|&x| f64::from(x)).collect();
        let mean = x.iter().sum::<f64>() / 500.0;
        let square = x.iter().map(|x| x * x).sum::<f64>() / 500.0;
        assert!(mean.abs() < 1e-4 && (square - 1.0).abs() < 1e-3, "{mean} {square}");
    }
    // What the user says, stands.
    let hints = Hints {
        numeric: Some(vec!["amount".into()]),
        categorical: Some(vec!["age".into(), "name:text".into()]),
        crosses: vec![vec!["age".into(), "name".into()]],
        ..Hints::default()
    };
    let (schema, _) = data.infer(&hints).unwrap();
    assert_eq!((names(&schema), schema.n_categorical()), ("age name".to_owned(), 3));
    assert_eq!(schema.numeric[0].transform, Transform::Log1p);
    // Through TOML and back.
    let file = dir.file("schema.toml", schema.to_toml());
    assert_eq!(Schema::from_toml_file(&file).unwrap(), schema);
    let file = dir.file(
        "schema.toml",
        "label = \"y\"\nnumeric = [\"a\", { name = \"b\", transform = \"log1p\" }]\ncategorical = [\"c\"]\n",
    );
    assert_eq!(Schema::from_toml_file(&file).unwrap().numeric[1].transform, Transform::Log1p);
    for bad in [
        "label = 1",
        "nonsense = 2\ncategorical=[\"c\"]",
        "categorical = [\"label\"]",
        "crosses = [[\"a\",\"b\"]]\ncategorical=[\"a\"]",
        "",
    ] {
        assert!(Schema::from_toml_file(&dir.file("bad.toml", bad)).is_err(), "{bad}");
    }
}
