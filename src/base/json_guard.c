/*
 * Follows strings and brackets, nothing else. On a text that is not JSON the count goes wrong only
 * behind the place where a parser stops: until there every string is closed as it was opened, and
 * a bracket outside of strings is one that the parser has descended into.
 */
#include "base/json_guard.h"

bool json_depth_ok(struct span text, size_t limit)
{
	size_t depth = 0;
	bool quoted = false;

	for (size_t i = 0; i < text.length; i++) {
		switch (text.data[i]) {
		case '"':
			quoted = !quoted;
			break;
		case '\\':
			if (quoted)
				i++;
			break;
		case '[':
		case '{':
			if (!quoted && depth++ >= limit)
				return false;
			break;
		case ']':
		case '}':
			if (!quoted && depth > 0)
				depth--;
			break;
		default:
			break;
		}
	}
	return true;
}
