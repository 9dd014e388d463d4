/** Return the text as a field of a CSV file. An apostrophe keeps a spreadsheet from reading a name as a formula. */
export function csvText(text: string): string {
  const harmless = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return `"${harmless.replaceAll('"', '""')}"`;
}
