/** Characters that must never reach a terminal or a log from an image: names in images are hostile too. */

/** Control characters, line and paragraph separators, and what reorders text. */
export const UNPRINTABLE = /[\p{Cc}\u2028-\u202e\u2066-\u2069]/u;
