//! Common English words: most tokenizers have a token for each, with the space before it.

#[rustfmt::skip]
pub const WORDS: [&str; 192] = [
    "about", "above", "across", "after", "again", "against", "air", "all", "along", "also", "always",
    "among", "animal", "answer", "apple", "area", "arm", "army", "art", "ask", "away", "baby", "back",
    "bad", "ball", "bank", "base", "bed", "before", "begin", "behind", "best", "better", "big", "bird",
    "black", "blood", "blue", "board", "boat", "body", "book", "both", "box", "boy", "bring", "brother",
    "brown", "build", "business", "call", "car", "care", "case", "cat", "cause", "center", "change",
    "child", "city", "class", "clear", "close", "cold", "color", "come", "common", "control", "corner",
    "cost", "could", "country", "course", "cover", "cross", "cut", "dark", "day", "dead", "deep",
    "different", "dog", "door", "down", "draw", "dream", "drive", "dry", "early", "earth", "east", "easy",
    "eat", "edge", "end", "energy", "enough", "even", "every", "eye", "face", "fact", "fall", "family",
    "far", "farm", "fast", "father", "feel", "field", "figure", "fire", "first", "fish", "five", "floor",
    "food", "force", "form", "found", "four", "free", "friend", "front", "full", "game", "garden", "girl",
    "give", "glass", "gold", "good", "government", "great", "green", "ground", "group", "hand", "hard",
    "head", "hear", "heart", "heat", "heavy", "help", "high", "hold", "home", "horse", "hot", "hour",
    "house", "human", "hundred", "ice", "idea", "inside", "iron", "island", "job", "keep", "kind", "king",
    "land", "large", "last", "late", "law", "lead", "learn", "left", "letter", "life", "light", "line",
    "list", "little", "long", "love", "machine", "market", "matter", "measure", "metal", "milk", "mind",
    "money", "moon", "morning", "mother", "mountain", "music",
];

/// One more token, with most tokenizers.
pub const FILLER: &str = "a";
