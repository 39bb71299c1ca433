// Draws avatars: reads {"styles": {name: {count, options}}} and writes one JSON object a line.
// First the authors of each style, then its avatars for the seeds 0 to count - 1.
import { readFileSync } from 'node:fs';
import { createAvatar } from '@dicebear/core';

const { styles } = JSON.parse(readFileSync(0, 'utf8'));
for (const [name, { count, options }] of Object.entries(styles)) {
  const style = await import(`@dicebear/${name}`);
  const lines = [JSON.stringify({ style: name, meta: style.meta })];
  for (let seed = 0; seed < count; seed += 1) {
    const { svg, extra } = createAvatar(style, { ...options, seed: String(seed) }).toJson();
    lines.push(JSON.stringify({ style: name, seed, svg, extra }));
  }
  process.stdout.write(lines.join('\n') + '\n');
}
