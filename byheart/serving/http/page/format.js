// Numbers, sizes and times as readers expect them.

const number = new Intl.NumberFormat("en");
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

export function count(value, one, many = `${one}s`) {
  return `${number.format(value)} ${value === 1 ? one : many}`;
}

/** Bytes with three digits: `3.14 MB`, where a kB is 1000 bytes. */
export function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let power = 0;
  let value = bytes;
  while (value >= 999.5 && power < units.length - 1) {
    value /= 1000;
    power += 1;
  }
  return power ? `${Number(value.toPrecision(3))} ${units[power]}` : count(bytes, "byte");
}

/** A share in percent, with two digits where it is small. */
export function share(part, whole) {
  return `${Number(((100 * part) / whole).toPrecision(2)).toLocaleString("en")} %`;
}

/** A time, given in seconds since 1970 or as ISO 8601, in the reader's zone. */
export function time(value) {
  const date = new Date(typeof value === "number" ? value * 1000 : value);
  return Number.isNaN(date.getTime()) ? "" : moment.format(date);
}

/** A method with its options, but for lists, which the model's chat template decides. */
export function method(memory) {
  const options = Object.entries(memory.options ?? {}).filter(([, value]) => typeof value !== "object");
  return [memory.method ?? "chosen at the first write", ...options.map(([name, value]) => `${name}=${value}`)].join(", ");
}
