// The option of a method that decides how much it keeps, and how options are typed.

/** By method: those that are offered first. */
export const RATES = {
  compact: { option: "times", label: "How many times fewer bytes than the full text", min: 2, max: 128, step: "any" },
  full: undefined,
  "repeat-score": { option: "share", label: "Share of the full text that is kept", min: 0.01, max: 1, step: "any" },
  retrieval: { option: "tokens", label: "Tokens read for a question", min: 1, max: 1000000, step: 1 },
  window: { option: "recent", label: "Recent tokens that are kept", min: 1, max: 1000000, step: 1 },
  "latent-pool": { option: "slots", label: "Slots for each text", min: 1, max: 100000, step: 1 },
};

/** Options written one a line, as on the command line: JSON where it is JSON, text where not. */
export function parseOptions(text) {
  const options = {};
  for (const line of text.split("\n").map((each) => each.trim()).filter(Boolean)) {
    const [, name, value] = line.match(/^([\w-]+)\s*=\s*(.+)$/) ?? [];
    if (!name) throw new Error(`An option is written name=value; this one is "${line}".`);
    try {
      options[name] = JSON.parse(value);
    } catch {
      options[name] = value;
    }
  }
  return options;
}

/** Options as they are typed. */
export function writeOptions(options) {
  return Object.entries(options).map(([name, value]) => `${name}=${JSON.stringify(value)}`).join("\n");
}
