//! Embeddings of texts: the mean of the final hidden states of all tokens, scaled to length 1.

/// Adds the hidden states `rows`, `[tokens][width]`, of a text of `n` tokens to `mean`, `[width]` (empty before the
/// first row).
pub fn add_to_mean(mean: &mut Vec<f32>, rows: &[f32], width: usize, n: usize) {
    mean.resize(width, 0.0);
    for row in rows.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / n as f32);
    }
}

/// Scales `x` to Euclidean length 1; the zero vector stays.
pub fn normalized(mut x: Vec<f32>) -> Vec<f32> {
    let length = x.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        x.iter_mut().for_each(|x| *x /= length);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_the_same_in_pieces() {
        let rows = [1.0, 0.0, 3.0, 4.0, 5.0, 2.0];
        let (mut whole, mut pieces) = (Vec::new(), Vec::new());
        add_to_mean(&mut whole, &rows, 2, 3);
        rows.chunks(2).for_each(|row| add_to_mean(&mut pieces, row, 2, 3));
        assert_eq!((&whole, &whole), (&pieces, &vec![1.0 / 3.0 + 1.0 + 5.0 / 3.0, 4.0 / 3.0 + 2.0 / 3.0]));
        let length = normalized(whole).iter().map(|x| x * x).sum::<f32>();
        assert!((length - 1.0).abs() < 1e-6);
        assert_eq!(normalized(vec![0.0, 0.0]), [0.0, 0.0]);
    }
}
