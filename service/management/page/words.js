// The page's words, in English and Chinese. A function takes what its sentence tells.

const ENGLISH = {
  title: "Cached prediction", model: "Model", docs: "API", question: "Question", ask: "Ask", example: "Example",
  repeat: "Ask 100 ×", stop: "Stop", answer: "Answer", more: "More", latency: "Each answer a dot", computed: "computed",
  redis: "Redis", memory: "memory", live: "This service, live", copy: "Copy as", copied: "Copied.", unknown: "unknown",
  empty: "Ask something: the first answer is computed, the second one remembered.",
  noModel: "No model is served. Make one with `make train`, then start the service again.",
  drop: "Drop or paste an image here, choose a file, or draw.", choose: "Image file", draw: "Drawing area", clear: "Clear",
  noImage: "Choose or draw an image first.", sameBox: "Same answer, without asking: nothing changes within the box.",
  box: (low, high) => `the answer holds from ${low} to ${high}`,
  away: "Redis is away. Answers are computed, and kept in memory.", draining: "This service is about to stop.",
  lost: "No connection to the service.", busy: (s) => `The service is busy. Ask again in ${s} s.`,
  up: "Redis ● up", down: "Redis ○ away", "read-only": "Redis ◐ takes no writes", off: "no Redis",
  how: {
    l1: "Hit in memory", l2: "Hit in Redis", computed: "Computed", collapsed: "Shared with somebody who asked at the same time",
  },
  ttl: (s) => `kept for ${s} s`, took: (ms) => `${ms} seen by this browser`,
  server: (t) => `in the service: cache ${t.cache}, queue ${t.queue}, model ${t.model}`,
  ratio: (x) => `${x} × faster warm`, medians: (cold, warm) => `Median computed ${cold}, from a cache ${warm}.`,
  hitRate: "hit rate", rate: "requests/s", saved: "computation saved", waiting: "waiting", workers: "workers", questions: "answers in memory",
};

const CHINESE = {
  title: "带缓存的预测服务", model: "模型", docs: "接口文档", question: "问题", ask: "提问", example: "示例", repeat: "提问 100 次",
  stop: "停止", answer: "答案", more: "更多", latency: "每个点是一次回答", computed: "计算", redis: "Redis", memory: "内存",
  live: "服务实况", copy: "复制为", copied: "已复制。", unknown: "未知", empty: "请提问：第一次回答是计算出来的，第二次来自缓存。",
  noModel: "还没有模型。请运行 `make train`，然后重新启动服务。", drop: "把图片拖到这里、粘贴、选择文件，或者手绘。", choose: "图片文件",
  draw: "绘图区", clear: "清除", noImage: "请先选择或画一张图片。", sameBox: "答案相同，无需提问：在方框范围内结果不变。",
  box: (low, high) => `从 ${low} 到 ${high} 答案不变`, away: "Redis 不可用。答案由模型计算，并保存在内存中。", draining: "服务即将停止。",
  lost: "无法连接到服务。", busy: (s) => `服务繁忙，请在 ${s} 秒后重试。`, up: "Redis ● 正常", down: "Redis ○ 不可用", "read-only": "Redis ◐ 只读",
  off: "没有 Redis",
  how: { l1: "内存命中", l2: "Redis 命中", computed: "重新计算", collapsed: "与同时提问的人共享一次计算" },
  ttl: (s) => `再保存 ${s} 秒`, took: (ms) => `浏览器测得 ${ms}`,
  server: (t) => `服务内部：缓存 ${t.cache}，排队 ${t.queue}，模型 ${t.model}`, ratio: (x) => `命中缓存快 ${x} 倍`,
  medians: (cold, warm) => `中位数：计算 ${cold}，缓存 ${warm}。`, hitRate: "命中率", rate: "请求/秒", saved: "节省的计算时间",
  waiting: "等待中", workers: "工作进程", questions: "内存中的答案",
};

export let language = navigator.language.startsWith("zh") ? "zh" : "en";
export let word = language === "zh" ? CHINESE : ENGLISH;

export function speak(chosen) {
  language = chosen;
  word = chosen === "zh" ? CHINESE : ENGLISH;
  document.documentElement.lang = chosen;
  document.title = word.title;
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = word[element.dataset.word];
}

const number = (digits) => new Intl.NumberFormat(language, { maximumFractionDigits: digits });

export const count = (x) => number(0).format(x);
export const decimal = (x) => new Intl.NumberFormat(language, { maximumSignificantDigits: 6 }).format(x);
export const percent = (x) => new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 1 }).format(x);
export const milliseconds = (ms) => `${number(ms < 1 ? 2 : ms < 10 ? 1 : 0).format(ms)} ms`;

export function duration(seconds) {
  if (seconds < 1) return milliseconds(seconds * 1000);
  if (seconds < 60) return `${number(1).format(seconds)} s`;
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60)];
  return hours ? `${count(hours)} h ${minutes} min` : `${minutes} min ${Math.floor(seconds % 60)} s`;
}
