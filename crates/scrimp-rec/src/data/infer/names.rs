//! Names of columns: the words of a name tell ids from quantities.

/// Words that end the name of an id.
const ID_WORDS: [&str; 17] = [
    "id", "ids", "uid", "uuid", "guid", "sku", "asin", "isbn", "ean", "upc", "gtin", "code", "zip",
    "zipcode", "postcode", "hash", "key",
];

/// Things with ids: `user`, and also `userid` as one word.
const THINGS: [&str; 55] = [
    "user",
    "item",
    "product",
    "customer",
    "client",
    "member",
    "visitor",
    "person",
    "account",
    "session",
    "device",
    "cookie",
    "ip",
    "ad",
    "banner",
    "campaign",
    "creative",
    "advertiser",
    "publisher",
    "site",
    "page",
    "url",
    "domain",
    "app",
    "category",
    "cat",
    "brand",
    "shop",
    "store",
    "seller",
    "merchant",
    "vendor",
    "movie",
    "film",
    "book",
    "song",
    "track",
    "artist",
    "album",
    "video",
    "article",
    "news",
    "doc",
    "document",
    "author",
    "channel",
    "game",
    "hotel",
    "venue",
    "city",
    "country",
    "region",
    "query",
    "order",
    "genre",
];

/// Things whose number is as often a quantity: they make an id only together with `id`.
const QUANTITIES: [&str; 6] = ["order", "page", "session", "video", "query", "visitor"];

/// Words of counts and averages: `clicks_per_user` is not an id.
const COUNTS: [&str; 16] = [
    "n", "num", "number", "count", "counts", "cnt", "total", "sum", "avg", "mean", "max", "min", "per",
    "rate", "ratio", "share",
];

/// Names of row numbers.
const ROWS: [&str; 11] = [
    "id",
    "row",
    "rowid",
    "rownum",
    "index",
    "idx",
    "uuid",
    "guid",
    "level 0",
    "index level 0",
    "row number",
];

/// The words of a name, in lower case: `UserID`, `user_id` and `user-id` are `user` and `id`.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut lower = false;
    for c in name.chars() {
        if !c.is_alphanumeric() || (lower && c.is_uppercase()) {
            words.push(String::new());
        }
        lower = c.is_lowercase() || c.is_ascii_digit();
        if let Some(word) = words.last_mut().filter(|_| c.is_alphanumeric()) {
            word.extend(c.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Whether integers in a column of this name are ids.
pub(super) fn is_id(name: &str) -> bool {
    let words = words(name);
    let Some(last) = words.last().map(String::as_str) else { return false };
    if words.iter().any(|word| COUNTS.contains(&word.as_str())) {
        return false;
    }
    let thing = last.strip_suffix("id").or_else(|| last.strip_suffix("code"));
    ID_WORDS.contains(&last)
        || thing.is_some_and(|thing| THINGS.contains(&thing))
        || THINGS.contains(&last) && !QUANTITIES.contains(&last)
}

/// Whether a column of this name numbers the rows if its values differ in all of them.
pub(super) fn is_row_number(name: &str) -> bool {
    let words = words(name).join(" ");
    ROWS.contains(&words.as_str()) || words == "row id" || is_unnamed(name)
}

/// Whether a table wrote the column without a name: the index of pandas or R.
pub(super) fn is_unnamed(name: &str) -> bool {
    name.is_empty() || name.strip_prefix("Unnamed: ").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ids() {
        for name in [
            "id",
            "user_id",
            "userId",
            "UserID",
            "userid",
            "USER_ID",
            "uid",
            "sku",
            "item",
            "ItemCode",
            "ad_id",
            "zip",
            "user.id",
            "product id",
            "orderId",
            "C_ZIPCODE",
            "Brand",
        ] {
            assert!(is_id(name), "{name}");
        }
        for name in [
            "paid",
            "bid",
            "price",
            "grid",
            "num_items",
            "clicks_per_user",
            "user_count",
            "age",
            "order",
            "valid",
            "",
        ] {
            assert!(!is_id(name), "{name}");
        }
        for name in ["id", "row_id", "RowId", "index", "", "Unnamed: 0", "__index_level_0__"] {
            assert!(is_row_number(name), "{name}");
        }
        assert!(!is_row_number("user_id") && !is_row_number("Unnamed: x"));
    }
}
