//! Schemas that are inferred from the data.

use super::*;

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
