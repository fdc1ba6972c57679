//! What `docs/src/reference/weight_formats.md` says about sizes is true.

use scrimp_kernels::{DType, linear::Matrix};

#[test]
fn table_of_weight_formats() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/reference/weight_formats.md");
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    for dtype in DType::ALL {
        let name = format!("`{dtype}`");
        let row = text
            .lines()
            .find(|line| line.starts_with('|') && line[..line[1..].find('|').unwrap()].contains(&name));
        let row = row.unwrap_or_else(|| panic!("{dtype} has no row in the table of {path}"));
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let number =
            |cell: usize| cells[cell].parse::<f64>().unwrap_or_else(|e| panic!("{dtype}, {row}: {e}"));
        assert_eq!(number(2), dtype.block_len() as f64, "{dtype}: columns per block");
        // So many blocks that the rounding of a matrix to 128 bytes does not show.
        let bytes = Matrix::packed_bytes(dtype, 16, 128 * dtype.block_len()).unwrap() as f64 / 128.0;
        assert_eq!(number(3), bytes, "{dtype}: bytes of a block of 16 rows");
        assert_eq!(number(4), bytes * 8.0 / (16 * dtype.block_len()) as f64, "{dtype}: bits per weight");
        let stored = dtype.block_bytes() as f64 * 8.0 / dtype.block_len() as f64;
        assert_eq!(number(5), stored, "{dtype}: bits per weight in the file");
    }
}
